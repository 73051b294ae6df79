// Package spec reads jobs: which volumes a container wants, and where. A job comes in the words of the system that wrote it (Mesos, its DVDI module,
// Marathon, Docker, an OCI bundle) or as flags of the command line; it leaves as one Job. Parse is the function to begin with.
//
// A job is written by whoever may start a container, so nothing in it is believed: the input is bounded, every value that is used is checked, and what
// cannot be understood is refused. The package opens nothing, runs nothing and asks nobody. Who may use which volume is decided elsewhere.
//
// One rule stands above the others: a volume is never silently left out. A job that asks for one and starts without it writes its data into the
// container's own filesystem, where it is lost with the container. So a misspelt enum, an unknown type, a missing or an unknown field of a volume is an
// error, although some of the systems that bindgate replaces skip over them. docs/formats.md lists each such difference.
//
// Errors are *wire.Error with the code invalid_request, or duplicate_volume. Their message is one printable line, "cannot use <JSON path>: <why>", with the
// value at fault quoted and cut.
package spec

import (
	"slices"
	"strings"
)

// Where a volume goes.
const (
	ScopeContainer = "container" // attached at ContainerPath
	ScopeHost      = "host"      // mounted by its driver on the host, attached nowhere (DVDI without a container path)
)

// Limits of a job. They bound what a parse can cost, long before any of them can be met by a real job.
const (
	MaxInput  = 1 << 20 // bytes of the input
	maxDepth  = 64      // levels of nested JSON
	maxValues = 1 << 16 // JSON values in the input
	maxText   = 1024    // bytes of a volume's name, an option's key, a label
)

// A Volume is one volume that a job asks for. (Driver, Name) is its identity.
type Volume struct {
	Driver, Name   string
	ContainerPath  string            // as the job says it; "" for ScopeHost
	Mode           string            // wire.ModeRO or wire.ModeRW
	Options        map[string]string // for the driver's Create; nil if there are none
	Subpath        string            // relative, beneath the volume's root; "" is the root
	NoExec, IDMap  bool
	Scope          string // ScopeContainer or ScopeHost
	ExplicitCreate bool   // the job says: the volume must exist, do not create it
	Field          string // where in the job it stands, for messages: "container.volumes[0]", "DVDI_VOLUME_NAME1", a flag
}

// A Skipped is a volume of a type that is not bindgate's, left to the agent. Index is its place in the list that it stands in.
type Skipped struct {
	Index int    `json:"index"`
	Type  string `json:"type"`
}

// A Job is what Parse understood.
type Job struct {
	Format   string
	Volumes  []Volume
	Skipped  []Skipped
	Labels   map[string]string // task_id and name of a Mesos task
	Warnings []string          // one line each: what was seen and, on purpose, not acted upon
}

// Defaults are the settings of policy.toml that a job may lean on.
type Defaults struct {
	Driver string // volume.default_driver: for flags and Docker parameters that name none
}

// The formats, in the order of DESIGN's table.
const (
	formatMesos    = "mesos"
	formatDVDI     = "dvdi"
	formatMarathon = "marathon"
	formatDocker   = "docker"
	formatOCI      = "oci"
)

var parsers = map[string]func(*document, Defaults) (*Job, error){
	formatMesos:    func(d *document, _ Defaults) (*Job, error) { return parseMesos(d) },
	formatDVDI:     func(d *document, _ Defaults) (*Job, error) { return parseDVDI(d) },
	formatMarathon: parseMarathon,
	formatDocker:   parseDocker,
	formatOCI:      func(d *document, _ Defaults) (*Job, error) { return parseOCI(d) },
}

// Formats returns the names that Parse takes as a format.
func Formats() []string {
	return []string{formatMesos, formatDVDI, formatMarathon, formatDocker, formatOCI}
}

// Parse reads a job of the named format; with format "" it is recognised by its content, and refused with the candidates named unless exactly one fits.
// The Job that it returns is valid (Validate). A job without volumes is no error.
//
// Format oci reads a bundle's config.json, or the state that a hook gets, by its annotations alone; FromOCI takes both and the environment.
//
// Errors have the code invalid_request, or duplicate_volume.
func Parse(format string, data []byte, d Defaults) (*Job, error) {
	if format != "" && parsers[format] == nil {
		return nil, refuse("format "+quote(format), "it is not one of %s", strings.Join(Formats(), ", "))
	}
	doc, err := read(data)
	if err != nil {
		return nil, err
	}
	if format == "" {
		if format, err = recognise(doc); err != nil {
			return nil, err
		}
	}
	j, err := parsers[format](doc, d)
	if err != nil {
		return nil, err
	}
	j.Format = format
	if err := j.Validate(); err != nil {
		return nil, err
	}
	return j, nil
}

// recognise names the format of a document. What it looks at are names that only one of the systems uses; it does not look at whether the job is right.
func recognise(doc *document) (string, error) {
	if doc.json == nil {
		if strings.Contains(doc.text, "=") {
			return formatDVDI, nil
		}
		why := "it is neither JSON nor lines of NAME=VALUE"
		if strings.TrimSpace(doc.text) == "" {
			why = "it is empty"
		}
		return "", refuse("the job", "%s", why).WithHint("the formats are %s: say which with --format", strings.Join(Formats(), ", "))
	}
	root := *doc.json
	if root.kind == list {
		return formatMesos, nil
	}
	var found []string
	if root.has("ociVersion") {
		found = append(found, formatOCI)
	}
	if v, _ := root.get("variables"); v.kind == list || slices.ContainsFunc(root.keys, isDVDI) {
		found = append(found, formatDVDI)
	}
	container, _ := root.get("container")
	if root.has(append(append([]string{"volumes", "type", "container_path"}, configKeys...), ownTaskKeys...)...) || volumesHave(container, "container_path", "source") {
		found = append(found, mesosOrDocker(root))
	}
	// A hook's state has an id too.
	if root.has("id") && !root.has("ociVersion") || root.has("instances", "env") || volumesHave(container, "containerPath", "external") {
		found = append(found, formatMarathon)
	}
	switch len(found) {
	case 1:
		return found[0], nil
	case 0:
		if container.kind == object {
			found = []string{formatMesos, formatMarathon, formatDocker}
		} else {
			found = Formats()
		}
	}
	return "", refuse("the job", "it does not tell its format: it may be %s", strings.Join(found, " or ")).WithHint("say which with --format")
}

// volumesHave reports whether a volume of the container has one of the keys.
func volumesHave(container at, keys ...string) bool {
	volumes, _ := container.get("volumes")
	for i := range volumes.items {
		if volumes.index(i).has(keys...) {
			return true
		}
	}
	return false
}

// mesosOrDocker tells the two formats of a ContainerInfo apart, wherever it stands.
func mesosOrDocker(root at) string {
	for _, path := range [][]string{{}, {"container"}, {"container_info"}, {"executor", "container"}, {"task_info", "container"},
		{"executor_info", "container"}} {
		info := root
		for _, key := range path {
			info, _ = info.get(key)
		}
		if t, _ := info.get("type"); t.kind == text && t.str == "DOCKER" || t.kind == number && t.str == "1" {
			return formatDocker
		}
	}
	return formatMesos
}
