package worker

import (
	"errors"
	"fmt"
	"maps"
	"path"
	"regexp"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	jsonstrict "sigs.k8s.io/json"
	"sigs.k8s.io/yaml"

	"github.com/ottoscaler/ottoscaler/internal/pod"
)

// agentContainer is the container that does the work, if it has that name; the
// first one otherwise.
const agentContainer = "agent"

// Pools is a valid pool file. It is read-only.
type Pools struct {
	// Limits hold for all pools together.
	Limits Limits
	byName map[string]*Pool
}

// Limits hold for all pools together.
type Limits struct {
	// MaxWorkers is the most workers that may take a place at once; nil means any number.
	MaxWorkers *int `json:"maxWorkers,omitempty"`
	// MaxWaiting is the most workers that wait for a place as pods. Above it, events
	// wait in Redis. Nil means [DefaultMaxWaiting].
	MaxWaiting *int `json:"maxWaiting,omitempty"`
}

// DefaultMaxWaiting is what one installation can hold.
const DefaultMaxWaiting = 5000

func (p *Pools) maxWaiting() int { return value(p.Limits.MaxWaiting, DefaultMaxWaiting) }

// Get returns the pool of that name, or nil.
func (p *Pools) Get(name string) *Pool { return p.byName[name] }

// Names returns the names of all pools, sorted.
func (p *Pools) Names() []string { return slices.Sorted(maps.Keys(p.byName)) }

// A Pool is a worker template and the policy for what an event may change in it.
type Pool struct {
	// Name of the pool.
	Name string
	// Rules are for how many workers there are and what becomes of them.
	Rules
	// Resources are what a worker gets and the most that it may get.
	Resources Resources
	// Overrides is what an event may change.
	Overrides Overrides
	// MaskSecrets asks for the values of the Secrets that the template refers to to
	// be hidden in the workers' logs.
	MaskSecrets bool
	// Template is what workers are made from. What it leaves open of image,
	// security context, restart policy and token is filled in already.
	Template corev1.PodTemplateSpec
	// agent is the index of the container that gets the event's variables and overrides.
	agent int
}

// Rules are for how many workers a pool has and what becomes of them. The zero
// value sets no bound, and tries nothing again.
type Rules struct {
	// MinWorkers is how many workers of the pool there are whatever events say.
	MinWorkers int `json:"minWorkers,omitempty"`
	// MaxWorkers is the most workers of the pool that may take a place at once; nil
	// means any number. A worker takes its place from its creation, or from when it
	// has waited for one, to its end.
	MaxWorkers *int `json:"maxWorkers,omitempty"`
	// MaxWorkersPerTask is the same for the workers of each task in the pool.
	MaxWorkersPerTask *int `json:"maxWorkersPerTask,omitempty"`
	// TimeLimit is how long a worker may run, unless its template has an
	// activeDeadlineSeconds; nil means for ever.
	TimeLimit *metav1.Duration `json:"timeLimit,omitempty"`
	// PendingLimit is how long a worker that has a place may take to start; nil means
	// [DefaultPendingLimit].
	PendingLimit *metav1.Duration `json:"pendingLimit,omitempty"`
	// KeepFinished is how long the pod of a worker is kept after its end, when all
	// else is done; nil means not at all.
	KeepFinished *metav1.Duration `json:"keepFinished,omitempty"`
	// Retries say what is tried again.
	Retries Retries `json:"retries,omitempty"`
}

// Retries say how often a worker is tried again, each time as a new pod.
type Retries struct {
	// Infrastructure is how often that is for failures that are nobody's fault who
	// wrote the worker; nil means [DefaultInfrastructureRetries].
	Infrastructure *int `json:"infrastructure,omitempty"`
	// Failures is how often that is for the worker's own failures.
	Failures int `json:"failures,omitempty"`
	// Backoff is the pause before the first of them; it doubles with each. Nil means
	// [DefaultRetryBackoff].
	Backoff *metav1.Duration `json:"backoff,omitempty"`
}

// What holds where a pool says nothing.
const (
	DefaultPendingLimit          = 15 * time.Minute
	DefaultInfrastructureRetries = 3
	DefaultRetryBackoff          = 10 * time.Second
)

// Overrides is the policy of a pool. The zero value allows nothing.
type Overrides struct {
	// Image has patterns of path.Match; an image is allowed if it matches one of
	// them. A star does not match a slash.
	Image []string `json:"image,omitempty"`
	// Command allows another command.
	Command bool `json:"command,omitempty"`
	// Env has patterns for names of variables.
	Env []string `json:"env,omitempty"`
	// CPU and Memory allow another amount, up to [Resources.Max].
	CPU    bool `json:"cpu,omitempty"`
	Memory bool `json:"memory,omitempty"`
}

// Resources are those of the container that does the work. The zero value gives
// nothing and bounds nothing.
type Resources struct {
	// Default is the request and the limit of each resource of which the template has
	// neither.
	Default corev1.ResourceList `json:"default,omitempty"`
	// Max is the most that a request or a limit may be, whether the template has it
	// or an event asks for it.
	Max corev1.ResourceList `json:"max,omitempty"`
}

// poolFile is the layout of the file.
type poolFile struct {
	Limits Limits              `json:"limits,omitempty"`
	Pools  map[string]filePool `json:"pools"`
}

type filePool struct {
	Rules
	Resources Resources `json:"resources,omitempty"`
	Overrides Overrides `json:"overrides,omitempty"`
	Logs      struct {
		MaskSecrets bool `json:"maskSecrets,omitempty"`
	} `json:"logs,omitempty"`
	Template corev1.PodTemplateSpec `json:"template"`
}

// ParsePools reads a pool file. The error joins every problem that it finds; each
// names its pool. AgentImage is the image of a worker container that names none.
//
// The reading is strict: an unknown, misspelt or repeated key is a problem, as
// with kubectl.
func ParsePools(data []byte, agentImage string) (*Pools, error) {
	asJSON, err := yaml.YAMLToJSONStrict(data)
	if err != nil {
		return nil, fmt.Errorf("reading YAML: %w", err)
	}
	var file poolFile
	strictErrs, err := jsonstrict.UnmarshalStrict(asJSON, &file)
	if err != nil {
		return nil, fmt.Errorf("reading pools: %w", err)
	}
	problems := slices.Clone(strictErrs) // such as: unknown field "pools.gpu.template.spec.continers"
	if len(file.Pools) == 0 {
		problems = append(problems, errors.New("there are no pools: the file needs at least one entry under pools"))
	}
	problems = append(problems, file.Limits.problems()...)
	pools := &Pools{Limits: file.Limits, byName: make(map[string]*Pool, len(file.Pools))}
	for _, name := range slices.Sorted(maps.Keys(file.Pools)) {
		p := &Pool{
			Name: name, Rules: file.Pools[name].Rules, Resources: file.Pools[name].Resources, Overrides: file.Pools[name].Overrides,
			MaskSecrets: file.Pools[name].Logs.MaskSecrets, Template: file.Pools[name].Template,
		}
		p.complete(agentImage)
		if limited := p.MaxWorkers != nil || p.MaxWorkersPerTask != nil || file.Limits.MaxWorkers != nil; limited && p.Template.Spec.NodeName != "" {
			problems = append(problems, fmt.Errorf("pools.%s.template.spec.nodeName: a worker that is bound to a node cannot wait for a place, so it goes with no limit: use nodeSelector", name))
		}
		for _, problem := range p.problems() {
			problems = append(problems, fmt.Errorf("pools.%s%s", name, problem))
		}
		pools.byName[name] = p
	}
	if len(problems) > 0 {
		return nil, errors.Join(problems...)
	}
	return pools, nil
}

// complete fills in what the template is silent about: image, resources, and the values
// with which a pod passes the restricted Pod Security Standard. What the template
// says, it keeps, so that a pool may ask for more where the namespace allows it.
func (p *Pool) complete(agentImage string) {
	spec := &p.Template.Spec
	p.agent = max(0, slices.IndexFunc(spec.Containers, func(c corev1.Container) bool { return c.Name == agentContainer }))
	if p.agent < len(spec.Containers) {
		agent := &spec.Containers[p.agent]
		if agent.Image == "" {
			agent.Image = agentImage
		}
		if agent.Name == "" {
			agent.Name = agentContainer
		}
		p.Resources.fill(&agent.Resources)
	}
	if spec.RestartPolicy == "" {
		spec.RestartPolicy = corev1.RestartPolicyNever
	}
	if spec.AutomountServiceAccountToken == nil {
		spec.AutomountServiceAccountToken = new(bool)
	}
	if spec.OS == nil || spec.OS.Name != corev1.Windows {
		restrict(spec)
	}
}

// restrict fills in the restricted Pod Security Standard.
func restrict(spec *corev1.PodSpec) {
	if spec.SecurityContext == nil {
		spec.SecurityContext = &corev1.PodSecurityContext{}
	}
	root := func(uid *int64) bool { return uid != nil && *uid == 0 }
	yes, no := true, false
	if spec.SecurityContext.RunAsNonRoot == nil && !root(spec.SecurityContext.RunAsUser) {
		spec.SecurityContext.RunAsNonRoot = &yes
	}
	if spec.SecurityContext.SeccompProfile == nil {
		spec.SecurityContext.SeccompProfile = &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault}
	}
	for _, containers := range [][]corev1.Container{spec.InitContainers, spec.Containers} {
		for i := range containers {
			if containers[i].SecurityContext == nil {
				containers[i].SecurityContext = &corev1.SecurityContext{}
			}
			sc := containers[i].SecurityContext
			// A template that asks for root by number has said that it wants root.
			if sc.RunAsNonRoot == nil && root(sc.RunAsUser) {
				sc.RunAsNonRoot = &no
			}
			// The API server finds these two at odds with the escalation that they imply.
			escalates := sc.Privileged != nil && *sc.Privileged || addsSysAdmin(sc.Capabilities)
			if sc.AllowPrivilegeEscalation == nil && !escalates {
				sc.AllowPrivilegeEscalation = &no
			}
			if sc.Capabilities == nil {
				sc.Capabilities = &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}}
			}
		}
	}
}

func addsSysAdmin(c *corev1.Capabilities) bool {
	return c != nil && (slices.Contains(c.Add, "SYS_ADMIN") || slices.Contains(c.Add, "CAP_SYS_ADMIN"))
}

var poolName = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$`)

// problems returns what is wrong with a pool that the API server would not say,
// or would say only at the first event. The API server checks the rest: see
// [Manager.CheckPools].
func (p *Pool) problems() []string {
	var all []string
	add := func(format string, args ...any) { all = append(all, "."+fmt.Sprintf(format, args...)) }

	if !poolName.MatchString(p.Name) {
		all = append(all, ": its name must have 1 to 63 lower-case letters, digits and dashes, and begin and end with a letter or digit")
	}
	meta, spec := p.Template.ObjectMeta, p.Template.Spec
	if meta.Name != "" || meta.GenerateName != "" || meta.Namespace != "" {
		add("template.metadata: name, generateName and namespace are Ottoscaler's to choose: remove them")
	}
	if len(meta.Finalizers) > 0 || len(meta.OwnerReferences) > 0 {
		add("template.metadata: finalizers and ownerReferences would keep workers alive or remove them behind Ottoscaler's back: remove them")
	}
	for _, key := range slices.Sorted(maps.Keys(meta.Labels)) {
		if reservedKey(key) {
			add("template.metadata.labels[%s]: it is reserved for Ottoscaler", key)
		}
		if bad := append(validation.IsQualifiedName(key), validation.IsValidLabelValue(meta.Labels[key])...); len(bad) > 0 {
			add("template.metadata.labels[%s]: %s", key, strings.Join(bad, "; "))
		}
	}
	for _, key := range slices.Sorted(maps.Keys(meta.Annotations)) {
		if reservedKey(key) {
			add("template.metadata.annotations[%s]: it is reserved for Ottoscaler", key)
		}
		if bad := validation.IsQualifiedName(strings.ToLower(key)); len(bad) > 0 {
			add("template.metadata.annotations[%s]: %s", key, strings.Join(bad, "; "))
		}
	}
	if spec.RestartPolicy != corev1.RestartPolicyNever && spec.RestartPolicy != corev1.RestartPolicyOnFailure {
		add("template.spec.restartPolicy: with %s, a worker never finishes: use Never or OnFailure", spec.RestartPolicy)
	}
	if len(spec.EphemeralContainers) > 0 {
		add("template.spec.ephemeralContainers: a pod cannot be created with them")
	}
	if len(spec.Containers) == 0 {
		add("template.spec.containers: a worker needs at least one container")
	}
	all = append(all, containerProblems(spec)...)
	all = append(all, p.Rules.problems()...)
	all = append(all, p.resourceProblems()...)
	return append(all, p.Overrides.problems()...)
}

// fill gives a container the default of each resource that is open.
func (r Resources) fill(of *corev1.ResourceRequirements) {
	for name, quantity := range r.Default {
		_, requested := of.Requests[name]
		if _, limited := of.Limits[name]; !requested && !limited {
			setResource(of, name, quantity)
		}
	}
}

// setResource makes request and limit the same, so that a worker gets what it is
// promised and no more.
func setResource(of *corev1.ResourceRequirements, name corev1.ResourceName, quantity resource.Quantity) {
	for _, list := range []*corev1.ResourceList{&of.Requests, &of.Limits} {
		if *list == nil {
			*list = make(corev1.ResourceList)
		}
		(*list)[name] = quantity
	}
}

func (p *Pool) resourceProblems() (all []string) {
	add := func(format string, args ...any) { all = append(all, "."+fmt.Sprintf(format, args...)) }
	for _, list := range []struct {
		field     string
		resources corev1.ResourceList
	}{{"default", p.Resources.Default}, {"max", p.Resources.Max}} {
		for _, name := range slices.Sorted(maps.Keys(list.resources)) {
			if quantity := list.resources[name]; quantity.Sign() <= 0 {
				add("resources.%s.%s: %s is not more than zero", list.field, name, quantity.String())
			}
		}
	}
	for _, name := range slices.Sorted(maps.Keys(p.Resources.Max)) {
		most := p.Resources.Max[name]
		tooMuch := func(in corev1.ResourceList, where string) bool {
			quantity, set := in[name]
			if set && quantity.Cmp(most) > 0 {
				add("%s.%s: %s is more than resources.max.%s, which is %s", where, name, quantity.String(), name, most.String())
				return true
			}
			return false
		}
		// The default is in the container as well, and one mistake is one problem.
		if tooMuch(p.Resources.Default, "resources.default") || p.agent >= len(p.Template.Spec.Containers) {
			continue
		}
		agent := p.Template.Spec.Containers[p.agent]
		tooMuch(agent.Resources.Requests, fmt.Sprintf("template.spec.containers[%d].resources.requests", p.agent))
		tooMuch(agent.Resources.Limits, fmt.Sprintf("template.spec.containers[%d].resources.limits", p.agent))
	}
	for _, o := range []struct {
		name    corev1.ResourceName
		allowed bool
	}{{corev1.ResourceCPU, p.Overrides.CPU}, {corev1.ResourceMemory, p.Overrides.Memory}} {
		if _, bounded := p.Resources.Max[o.name]; o.allowed && !bounded {
			add("overrides.%s: it needs resources.max.%s, or an event could ask for any amount", o.name, o.name)
		}
	}
	return all
}

func (l Limits) problems() (all []error) {
	for _, n := range []struct {
		field string
		value *int
	}{{"maxWorkers", l.MaxWorkers}, {"maxWaiting", l.MaxWaiting}} {
		if n.value != nil && *n.value < 0 {
			all = append(all, fmt.Errorf("limits.%s: %d is less than zero", n.field, *n.value))
		}
	}
	return all
}

func (r Rules) problems() (all []string) {
	for _, n := range []struct {
		field string
		value *int
	}{{"minWorkers", &r.MinWorkers}, {"maxWorkers", r.MaxWorkers}, {"maxWorkersPerTask", r.MaxWorkersPerTask}, {"retries.infrastructure", r.Retries.Infrastructure}, {"retries.failures", &r.Retries.Failures}} {
		if n.value != nil && *n.value < 0 {
			all = append(all, fmt.Sprintf(".%s: %d is less than zero", n.field, *n.value))
		}
	}
	for _, d := range []struct {
		field string
		value *metav1.Duration
		least time.Duration
	}{
		{"timeLimit", r.TimeLimit, time.Second},
		{"pendingLimit", r.PendingLimit, time.Second},
		{"keepFinished", r.KeepFinished, 0},
		{"retries.backoff", r.Retries.Backoff, 0},
	} {
		if d.value != nil && d.value.Duration < d.least {
			all = append(all, fmt.Sprintf(".%s: %s is less than %s", d.field, d.value.Duration, d.least))
		}
	}
	return all
}

func containerProblems(spec corev1.PodSpec) []string {
	var all []string
	seen := map[string]bool{}
	list := func(where string, containers []corev1.Container) {
		for i, c := range containers {
			at := fmt.Sprintf(".template.spec.%s[%d]", where, i)
			switch bad := validation.IsDNS1123Label(c.Name); {
			case c.Name == "":
				all = append(all, at+".name: the container has no name")
			case len(bad) > 0:
				all = append(all, fmt.Sprintf("%s.name: %s: %s", at, c.Name, strings.Join(bad, "; ")))
			case seen[c.Name]:
				all = append(all, fmt.Sprintf("%s.name: %s is taken by another container", at, c.Name))
			}
			seen[c.Name] = true
			if c.Image == "" {
				all = append(all, at+".image: the container has none (only the worker container takes it from OTTO_AGENT_IMAGE)")
			}
			for j, env := range c.Env {
				if reservedVariable(env.Name) {
					all = append(all, fmt.Sprintf("%s.env[%d].name: variable %s is set by Ottoscaler", at, j, env.Name))
				}
			}
			for _, name := range slices.Sorted(maps.Keys(c.Resources.Limits)) {
				limit := c.Resources.Limits[name]
				if request, both := c.Resources.Requests[name]; both && request.Cmp(limit) > 0 {
					all = append(all, fmt.Sprintf("%s.resources.requests.%s: %s exceeds the limit, which is %s", at, name, request.String(), limit.String()))
				}
			}
		}
	}
	list("initContainers", spec.InitContainers)
	list("containers", spec.Containers)
	return all
}

func (o Overrides) problems() []string {
	var all []string
	for field, patterns := range map[string][]string{"image": o.Image, "env": o.Env} {
		for i, pattern := range patterns {
			if _, err := path.Match(pattern, ""); err != nil || pattern == "" {
				all = append(all, fmt.Sprintf(".overrides.%s[%d]: %q is no valid pattern", field, i, pattern))
			}
		}
	}
	slices.Sort(all)
	return all
}

// reservedKey reports whether a label or annotation is Ottoscaler's own.
func reservedKey(key string) bool {
	switch key {
	case pod.LabelManagedBy, pod.LabelComponent, pod.LabelInstance:
		return true
	}
	return strings.HasPrefix(key, pod.AnnotationFieldPrefix) || strings.HasPrefix(key, pod.AnnotationMetaPrefix)
}
