package cli

import (
	"errors"
	"io"
	"io/fs"
	"maps"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/bindgate/bindgate/policy/config"
	"github.com/bindgate/bindgate/policy/lifecycle"
	"github.com/bindgate/bindgate/policy/spec"
	"github.com/bindgate/bindgate/wire"
)

// jobFlags are the flags of prepare, attach and policy check: the volumes, or where the job that names them is, and what there is to say of the container.
type jobFlags struct {
	container, format, parent  string
	rootfs, directory, sandbox string
	labels                     []string
	mountsBy                   string
	explicit                   bool
	driver                     string
	volumes, mounts, opts      []string
}

func (j *jobFlags) add(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&j.container, "container", "", "the container's `ID`")
	f.StringVar(&j.format, "format", "", "the job's format: "+strings.Join(spec.Formats(), ", ")+" (default: recognised by its content)")
	f.StringVar(&j.rootfs, "rootfs", "", "host path of the root filesystem, to attach before the container pivots")
	f.StringVar(&j.directory, "directory", "", "host path of the sandbox `DIR`ectory, for relative container paths")
	f.StringVar(&j.sandbox, "sandbox-directory", "", "where the container sees its sandbox (default "+wire.DefaultSandbox+")")
	f.StringVar(&j.parent, "parent", "", "the `ID` of the container in which this one is nested")
	f.StringArrayVar(&j.labels, "label", nil, "a label that status shows, `K=V`")
	f.StringVar(&j.mountsBy, "mounts-by", lifecycle.ByHelper, "who makes the mounts in the container: helper or agent")
	f.BoolVar(&j.explicit, "explicit-create", false, "fail for a volume that does not exist, instead of creating it")
	f.StringVar(&j.driver, "driver", "", "the driver of -v volumes (default: default_driver of policy.toml)")
	f.StringArrayVarP(&j.volumes, "volume", "v", nil, "a `VOLUME`, NAME:CONTAINER_PATH[:ro|rw][,noexec][,idmap][,subpath=P]")
	f.StringArrayVar(&j.mounts, "mount", nil, "a `VOLUME`, driver=D,name=N,target=PATH[,readonly][,noexec][,idmap][,subpath=P][,opt=K=V]...")
	f.StringArrayVar(&j.opts, "opt", nil, "an option for the driver of -v volumes, `K=V`")
	_ = cmd.RegisterFlagCompletionFunc("format", cobra.FixedCompletions(spec.Formats(), cobra.ShellCompDirectiveNoFileComp))
}

// request reads the job, as the policy user: from the flags, the file or stdin.
func (a *app) request(j *jobFlags, args []string, p *config.Policy) (lifecycle.Request, error) {
	r := lifecycle.Request{Container: j.container, Parent: j.parent, Rootfs: j.rootfs, Directory: j.directory, Sandbox: j.sandbox,
		MountsBy: j.mountsBy, ExplicitCreate: j.explicit, Labels: map[string]string{}}
	for _, l := range j.labels {
		k, v, ok := strings.Cut(l, "=")
		if !ok || k == "" {
			return r, usageError("cannot use --label %q: it is K=V", l)
		}
		r.Labels[k] = v
	}
	var err error
	defaults := spec.Defaults{Driver: p.Volume.DefaultDriver}
	switch {
	case len(j.volumes) == 0 && (j.driver != "" || len(j.opts) > 0): // they would be lost, and --mount take another driver
		err = usageError("cannot read the job: --driver and --opt go with -v; --mount has driver= and opt= of its own")
	case len(j.volumes)+len(j.mounts) == 0:
		var data []byte
		if data, err = a.readJob(args); err == nil {
			r.Job, err = spec.Parse(j.format, data, defaults)
		}
	case len(args) > 0:
		err = usageError("cannot read the job: the volumes are named twice, by flags and by the job %s", args[0])
	case j.format != "":
		err = usageError("cannot read the job: --format says how to read a job, and the volumes are named by flags")
	default:
		r.Job, err = j.flagged(defaults)
	}
	return r, err
}

// flagged makes a job of the volumes that the flags name.
func (j *jobFlags) flagged(d spec.Defaults) (*spec.Job, error) {
	job := &spec.Job{}
	options := map[string]string{}
	for _, o := range j.opts {
		k, v, err := spec.ParseOption("--opt", o)
		if err != nil {
			return nil, err
		}
		options[k] = v
	}
	driver := d.Driver
	if j.driver != "" {
		driver = j.driver
	}
	for _, s := range j.volumes {
		v, err := spec.ParseVolumeFlag(s, driver)
		if err != nil {
			return nil, err
		}
		if len(options) > 0 {
			v.Options = maps.Clone(options)
		}
		job.Volumes = append(job.Volumes, v)
	}
	for _, s := range j.mounts {
		v, err := spec.ParseMountFlag(s, d)
		if err != nil {
			return nil, err
		}
		job.Volumes = append(job.Volumes, v)
	}
	return job, job.Validate()
}

// readJob reads FILE, or stdin for - and for none. A file is opened with the rights of the policy user, whoever named it; stdin is what the caller opened.
func (a *app) readJob(args []string) ([]byte, error) {
	in, name := a.In, "stdin"
	if len(args) > 0 && args[0] != "-" {
		name = args[0]
		f, err := os.OpenFile(name, os.O_RDONLY|unix.O_NONBLOCK, 0) // a FIFO must not hold us up
		if err != nil {
			return nil, noInput(name, err)
		}
		defer f.Close()
		in = f
	} else if isTerminal(in) {
		return nil, wire.Errorf(wire.Usage, "usage", "cannot read the job: stdin is a terminal").WithHint("name volumes with -v or --mount, or a FILE")
	}
	data, err := io.ReadAll(io.LimitReader(in, spec.MaxInput+1))
	if err != nil {
		return nil, noInput(name, err)
	}
	return data, nil // spec refuses what is over its limit
}

func noInput(name string, err error) error {
	var p *fs.PathError
	if errors.As(err, &p) {
		err = p.Err
	}
	e := wire.Errorf(wire.NoInput, "input", "cannot read %s: %v", name, err)
	if errors.Is(err, fs.ErrPermission) {
		return e.WithHint("it is read as the policy user; bindgate ... < %s hands it over", name)
	}
	return e
}
