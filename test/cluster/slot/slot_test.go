package slot_test

import (
	"errors"
	"net/netip"
	"strings"
	"testing"

	"github.com/ottoscaler/ottoscaler/test/cluster/slot"
)

func TestChooseSkipsBusySlots(t *testing.T) {
	s, err := slot.Choose([]slot.Slot{slot.New(2), slot.New(3)}, func(s slot.Slot) error {
		if s.Number == 2 {
			return errors.New("route 10.194.0.0/16 exists")
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if got, want := s.Number, 3; got != want {
		t.Errorf("slot = %d, want %d", got, want)
	}
}

func TestChooseSaysWhyNoSlotIsFree(t *testing.T) {
	_, err := slot.Choose([]slot.Slot{slot.New(0)}, func(slot.Slot) error { return errors.New("port 24000 is in use") })
	if err == nil || !strings.Contains(err.Error(), "port 24000 is in use") {
		t.Errorf("err = %v, want the reason", err)
	}
}

func TestChooseFailsWhenEverySlotHasACluster(t *testing.T) {
	if _, err := slot.Choose(nil, func(slot.Slot) error { return nil }); err == nil {
		t.Error("no error")
	}
}

func TestSlotsShareNothing(t *testing.T) {
	seenPort := map[int]int{}
	for n := range slot.Count {
		s := slot.New(n)
		if err := s.Validate(); err != nil {
			t.Fatalf("slot %d: %v", n, err)
		}
		for _, p := range s.Ports() {
			if other, ok := seenPort[p]; ok {
				t.Errorf("slots %d and %d share port %d", other, n, p)
			}
			seenPort[p] = n
		}
		for m := range n {
			if slot.New(m).CIDR.Overlaps(s.CIDR) {
				t.Errorf("slots %d and %d share addresses", m, n)
			}
		}
		if name := s.Veth(slot.MaxNodes); len(name) > 15 {
			t.Errorf("%q is too long for a network device", name)
		}
	}
}

func TestNetworksOfASlotDoNotOverlap(t *testing.T) {
	s := slot.New(7)
	nets := []netip.Prefix{s.NodeNet(), s.ServiceNet(), s.FakePodNet()}
	for n := 1; n <= slot.MaxNodes; n++ {
		if !s.PodNets().Overlaps(s.PodNet(n)) || s.PodNets().Overlaps(s.NodeNet()) {
			t.Errorf("node %d: pods at %v, all pods at %v, nodes at %v", n, s.PodNet(n), s.PodNets(), s.NodeNet())
		}
		nets = append(nets, s.PodNet(n))
		if !s.NodeNet().Contains(s.NodeIP(n)) {
			t.Errorf("node %d: %v is not on the bridge's network", n, s.NodeIP(n))
		}
	}
	for i, a := range nets {
		if !s.CIDR.Overlaps(a) || a.Bits() < s.CIDR.Bits() {
			t.Errorf("%v is not within %v", a, s.CIDR)
		}
		for _, b := range nets[:i] {
			if a.Overlaps(b) {
				t.Errorf("%v overlaps %v", a, b)
			}
		}
	}
}

func TestValidateNamesEveryProblem(t *testing.T) {
	err := slot.Slot{Number: 99, CIDR: netip.MustParsePrefix("10.1.2.0/24"), Port: 80}.Validate()
	if err == nil {
		t.Fatal("no error")
	}
	for _, want := range []string{"slot 99", "10.1.2.0/24", "first port 80"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q does not mention %q", err, want)
		}
	}
}
