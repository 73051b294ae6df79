package cli

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/syslog"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/bindgate/bindgate/conf"
	"github.com/bindgate/bindgate/policy/boundary"
	"github.com/bindgate/bindgate/policy/hook"
	"github.com/bindgate/bindgate/policy/spec"
	"github.com/bindgate/bindgate/wire"
)

// hookTime is --timeout of a hook unless it is given: shorter than the 120 s in packaging/oci, after which the runtime kills the hook, so that what was done is undone before.
const hookTime = 90 * time.Second

func (a *app) hookCommand() *cobra.Command {
	var listOnly bool
	cmd := &cobra.Command{
		Use:   "hook [createRuntime | poststop | precreate]",
		Short: "what a container runtime calls (OCI hooks)",
		Long: `Hook is for container runtimes and engines. The container's volumes are in its annotations, io.bindgate.volume.N, each in the form of --mount.

createRuntime attaches them before the container starts: all, or the runtime stops the container. poststop lets them go when it has ended. Both read the state that
the runtime writes to stdin; without a name the stage follows from the state. The bundle's config.json is opened in the working directory, which is the bundle.

precreate is podman's own stage: config.json on stdin, and on stdout the same with the volumes as mounts that podman makes, which createRuntime then only
tells the process of. It needs root: the edited config.json is root's, and takes only mounts that helper.toml allows.

The records have the owner "oci" unless --owner says otherwise. An error is written to syslog too, since not every runtime shows what a hook writes to stderr.`,
		Example: `  share/bindgate/oci/hooks.d/bindgate.json of the installation, for podman and CRI-O`,
		Args:    cobra.MaximumNArgs(1),
		ValidArgsFunction: cobra.FixedCompletions([]string{hook.StageCreateRuntime, hook.StagePoststop, hook.StagePrecreate},
			cobra.ShellCompDirectiveNoFileComp),
		RunE: func(cmd *cobra.Command, args []string) error {
			os.Clearenv() // the runtime's whole environment, or an engine's, or nothing
			if !cmd.Flags().Changed("owner") {
				a.owner = hook.Owner
			}
			if !cmd.Flags().Changed("timeout") {
				a.timeout = hookTime
			}
			stage := ""
			if len(args) > 0 {
				stage = args[0]
			}
			var err error
			switch {
			case stage != hook.StagePrecreate && listOnly:
				err = usageError("cannot list the mounts of %q: --list goes with precreate", stage)
			case stage == hook.StagePrecreate && listOnly:
				err = a.precreateList(cmd)
			case stage == hook.StagePrecreate:
				err = a.precreate(cmd.Context())
			case stage == "", stage == hook.StageCreateRuntime, stage == hook.StagePoststop:
				err = a.ociHook(cmd, stage)
			default:
				err = usageError("cannot do the hook %q: it is createRuntime, poststop or precreate", stage)
			}
			if ended := (*exec.ExitError)(nil); err != nil && !errors.As(err, &ended) {
				if log, e := syslog.New(syslog.LOG_ERR|syslog.LOG_DAEMON, "bindgate"); e == nil {
					log.Err("hook: " + oneLine(a.asError(err).Message))
					log.Close()
				}
			}
			return err
		},
	}
	cmd.Flags().BoolVar(&listOnly, "list", false, "print the mounts for precreate, as the policy user")
	_ = cmd.Flags().MarkHidden("list")
	return cmd
}

func (a *app) ociHook(cmd *cobra.Command, stage string) error {
	// config.json is often root's alone, and is opened while we are; it is read when we no longer are. A link or a FIFO is none.
	dir, _ := os.Getwd()
	config, _ := os.OpenFile("config.json", os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	defer config.Close()
	ctx, s, err := a.start(cmd)
	if err != nil {
		return err
	}
	defer s.Close()
	data, err := a.readStdin()
	if err != nil {
		return err
	}
	state, err := hook.ParseState(data)
	if err != nil {
		return err
	}
	if stage == "" {
		if stage, err = state.Stage(); err != nil {
			return err
		}
	}
	if stage == hook.StagePoststop {
		return hook.Poststop(ctx, s.Isolator, state)
	}
	if config == nil || filepath.Clean(state.Bundle) != dir {
		if config, err = os.OpenFile(filepath.Join(state.Bundle, "config.json"), os.O_RDONLY|unix.O_NONBLOCK, 0); err != nil {
			return noInput(filepath.Join(state.Bundle, "config.json"), err)
		}
		defer config.Close()
	}
	data, err = io.ReadAll(io.LimitReader(config, spec.MaxInput+1))
	if err != nil {
		return noInput(config.Name(), err)
	}
	warnings, err := hook.CreateRuntime(ctx, s.Isolator, state, data, s.policy.Hook.DVDIEnv)
	if err != nil {
		return err
	}
	for _, w := range warnings {
		io.WriteString(a.Err, "warning: "+oneLine(w)+"\n")
	}
	return nil
}

// precreate is the part of the hook that stays root. It has the policy process, another process, read config.json and make the list of mounts; it checks these and puts them in.
func (a *app) precreate(ctx context.Context) error {
	if os.Geteuid() != 0 {
		return wire.Errorf(wire.Denied, "user", "cannot do the hook precreate as uid %d: it is for a runtime that root runs", os.Geteuid())
	}
	config, err := a.readStdin()
	if err != nil {
		return err
	}
	helper, err := conf.LoadHelper()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, a.timeout+undoMargin)
	defer cancel()
	answer, err := a.self(ctx, config, "hook", hook.StagePrecreate, "--list", "--timeout", a.timeout.String())
	if err != nil {
		return err
	}
	if len(answer) > 0 {
		list, err := wire.DecodeRequest(answer)
		if err != nil {
			return wire.Errorf(wire.Internal, "hook", "cannot read the list of mounts: %v", err)
		}
		spliced, err := hook.Splice(config, list, helper)
		if err != nil {
			_, _ = a.self(ctx, nil, "cleanup", "--container", list.Container, "--timeout", a.timeout.String()) // it reports for itself, and recover tries again
			return err
		}
		config = spliced
	}
	_, err = a.Out.Write(config)
	return written(err)
}

// undoMargin is what the policy process gets beyond its own deadline, to undo what it did.
const undoMargin = 20 * time.Second

// self runs this program again, which becomes the policy user, and returns what it writes to stdout. It reports its failure itself, which is an *exec.ExitError here.
func (a *app) self(ctx context.Context, stdin []byte, args ...string) ([]byte, error) {
	var out bytes.Buffer
	cmd := exec.CommandContext(ctx, "/proc/self/exe", append(args, "--owner", a.owner, "--log-level", a.logLevel)...)
	if a.output != "" {
		cmd.Args = append(cmd.Args, "-o", a.output)
	}
	cmd.Args[0], cmd.Env, cmd.Dir = a.name, []string{}, "/"
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(stdin), &out, a.Err
	cmd.Cancel = func() error { return cmd.Process.Signal(unix.SIGTERM) } // it undoes what it did
	cmd.WaitDelay = undoMargin
	err := cmd.Run()
	var ended *exec.ExitError
	if err != nil && !errors.As(err, &ended) {
		err = wire.Errorf(wire.System, "hook", "cannot run the policy process: %v", err)
	}
	return out.Bytes(), err
}

// precreateList is the policy process' part of precreate.
func (a *app) precreateList(cmd *cobra.Command) error {
	ctx, s, err := a.start(cmd)
	if err != nil {
		return err
	}
	defer s.Close()
	config, err := a.readStdin()
	if err != nil {
		return err
	}
	list, err := hook.Precreate(ctx, s.Isolator, config, s.policy.Hook.DVDIEnv)
	if err != nil || list == nil {
		return err
	}
	_, err = a.Out.Write(boundary.Encode(list))
	return written(err)
}

// readStdin reads stdin to its end, or to one byte beyond what is taken.
func (a *app) readStdin() ([]byte, error) {
	data, err := io.ReadAll(io.LimitReader(a.In, spec.MaxInput+1))
	if err != nil {
		return nil, noInput("stdin", err)
	}
	return data, nil
}
