package state_test

import (
	"strings"
	"testing"

	"github.com/ottoscaler/ottoscaler/test/cluster/state"
)

func TestANewClusterIsWhatWasWished(t *testing.T) {
	for name, tt := range map[string]struct {
		wish state.Wish
		want state.Config
	}{
		"nothing said":         {state.Wish{}, state.Config{Nodes: 1}},
		"kwok alone":           {state.Wish{Kwok: new(3)}, state.Config{Kwok: 3}},
		"kwok and nodes":       {state.Wish{Kwok: new(3), Nodes: new(1)}, state.Config{Nodes: 1, Kwok: 3}},
		"control plane alone":  {state.Wish{Nodes: new(0)}, state.Config{}},
		"gates and small logs": {state.Wish{FeatureGates: new("X=true"), ContainerLogMaxSize: new("16Ki")}, state.Config{Nodes: 1, FeatureGates: "X=true", ContainerLogMaxSize: "16Ki"}},
	} {
		t.Run(name, func(t *testing.T) {
			if got, err := tt.wish.New(); err != nil || got != tt.want {
				t.Errorf("got %+v, %v; want %+v", got, err, tt.want)
			}
		})
	}
}

func TestARunningClusterMayGrow(t *testing.T) {
	old := state.Config{Nodes: 1, Kwok: 2, FeatureGates: "X=true"}
	got, err := state.Wish{Nodes: new(3), Kwok: new(5)}.Extend(old)
	if want := (state.Config{Nodes: 3, Kwok: 5, FeatureGates: "X=true"}); err != nil || got != want {
		t.Errorf("got %+v, %v; want %+v", got, err, want)
	}
	if got, err := (state.Wish{}).Extend(old); err != nil || got != old {
		t.Errorf("nothing said: got %+v, %v; want %+v", got, err, old)
	}
}

func TestARunningClusterRefusesWhatNeedsANewOne(t *testing.T) {
	old := state.Config{Nodes: 2, FeatureGates: "X=true"}
	for name, tt := range map[string]struct {
		old  state.Config
		wish state.Wish
		want string
	}{
		"fewer nodes":         {old, state.Wish{Nodes: new(1)}, "cannot lose any"},
		"other gates":         {old, state.Wish{FeatureGates: new("")}, `feature gates are "X=true"`},
		"other size of logs":  {old, state.Wish{ContainerLogMaxSize: new("1Mi")}, "size of container logs"},
		"first node":          {state.Config{Kwok: 1}, state.Wish{Nodes: new(1)}, "nodes cannot reach it"},
		"more nodes than fit": {old, state.Wish{Nodes: new(64)}, "want 0 to 63"},
		"fewer than none":     {state.Config{}, state.Wish{Kwok: new(-1)}, "0 or more"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := tt.wish.Extend(tt.old)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("err = %v, want %q", err, tt.want)
			}
		})
	}
}
