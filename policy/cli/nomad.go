package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/bindgate/bindgate/conf"
	"github.com/bindgate/bindgate/policy/lifecycle"
	"github.com/bindgate/bindgate/policy/spec"
	"github.com/bindgate/bindgate/wire"
)

// nomadName is the program's name as a plugin of Nomad's for dynamic host volumes: what the link in Nomad's plugin folder is called, and so the plugin_id
// of volumes. nomadOwner is whose records they are.
const (
	nomadName  = "bindgate-nomad"
	nomadOwner = "nomad"
)

// nomadLimit is shorter than Nomad waits (60 s), so that what is not done by then is undone by us, and not left by a kill.
const nomadLimit = 55 * time.Second

// A nomadVolume is what Nomad says of one, in the environment.
type nomadVolume struct {
	id, driver, name string
	named            bool // by its specification, so it is not ours to delete
	explicit         bool
	options, labels  map[string]string
}

// nomad is the command line of a plugin for Nomad's dynamic host volumes (Nomad 1.10): fingerprint, create and delete, with DHV_ variables in the
// environment and JSON on stdout. Nomad calls create again for each volume when its agent starts, and needs it to change nothing then.
//
// A volume of Nomad's is a container in the journal, which never gets a process: its id is Nomad's, and its one volume is mounted on the host only.
func (a *app) nomad() *cobra.Command {
	a.owner, a.logLevel, a.output, a.timeout = nomadOwner, "warn", "table", nomadLimit
	root := &cobra.Command{
		Use:   nomadName,
		Short: "a plugin for Nomad's dynamic host volumes",
		Long: `bindgate-nomad makes volumes of Docker volume plugins, and of the built-in driver "local", dynamic host volumes of Nomad's. Nomad calls it; see
docs/nomad.md. The parameters of a volume's specification are "driver" (default: default_driver of policy.toml), "name" (default: the id that Nomad gave the
volume) and "explicit_create"; all others are options for the driver.

Delete removes a volume that has Nomad's id as its name, with what it holds. One that the specification names is only unmounted.

It runs as the policy user of the installation (Nomad starts it as root, and it becomes that user). The rules of policy.toml hold; the owner in them is
"nomad", the container is the volume's id.`,
		Version:       conf.Version(),
		Args:          cobra.NoArgs,
		SilenceErrors: true,
		SilenceUsage:  true,
		RunE: func(*cobra.Command, []string) error {
			return usageError("cannot do anything: no operation is given").WithHint("%s is called by Nomad, with fingerprint, create or delete", nomadName)
		},
	}
	root.CompletionOptions.DisableDefaultCmd = true
	root.SetFlagErrorFunc(flagError)
	root.AddCommand(&cobra.Command{Use: "fingerprint", Short: "tell that the plugin is there, and its version", Args: cobra.NoArgs, RunE: func(*cobra.Command, []string) error {
		version := conf.Version()
		if version == "" || version[0] < '0' || version[0] > '9' { // Nomad refuses what is no version
			version = "0.0.0"
		}
		return writeJSON(a.Out, map[string]string{"version": version})
	}})
	add := func(use, short string, call func(ctx context.Context, s *session, v *nomadVolume) error) {
		root.AddCommand(&cobra.Command{Use: use, Short: short, Args: cobra.NoArgs, RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, s, err := a.start(cmd)
			if err != nil {
				return err
			}
			defer s.Close()
			v, err := readNomadVolume(s.policy.Volume.DefaultDriver)
			if err != nil {
				return err
			}
			return call(ctx, s, v)
		}})
	}
	add("create", "make a volume available on the host, and tell where", a.nomadCreate)
	add("delete", "let a volume go, and remove it if it was made for Nomad", a.nomadDelete)
	return root
}

// readNomadVolume reads the environment that Nomad makes for create and delete.
func readNomadVolume(defaultDriver string) (*nomadVolume, error) {
	v := &nomadVolume{id: os.Getenv("DHV_VOLUME_ID"), driver: defaultDriver, options: map[string]string{}, labels: map[string]string{}}
	if err := wire.CheckID("volume id", v.id); err != nil {
		return nil, wire.Errorf(wire.InvalidRequest, "request", "cannot use DHV_VOLUME_ID: %v", err).WithHint("%s is called by Nomad", nomadName)
	}
	var parameters map[string]string
	if text := os.Getenv("DHV_PARAMETERS"); text != "" {
		if err := json.Unmarshal([]byte(text), &parameters); err != nil {
			return nil, wire.Errorf(wire.InvalidRequest, "request", "cannot read DHV_PARAMETERS: %v", err)
		}
	}
	v.name = v.id
	for key, value := range parameters {
		switch key {
		case "driver":
			v.driver = value
		case "name":
			v.name, v.named = value, true
		case "explicit_create":
			if v.explicit = value == "true"; !v.explicit && value != "false" {
				return nil, wire.Errorf(wire.InvalidRequest, "request", "cannot use the parameter explicit_create = %q: it is true or false", value)
			}
		default:
			v.options[key] = value
		}
	}
	for label, name := range map[string]string{"nomad_namespace": "DHV_NAMESPACE", "nomad_volume": "DHV_VOLUME_NAME"} {
		if value := os.Getenv(name); value != "" {
			v.labels[label] = value
		}
	}
	return v, nil
}

func (a *app) nomadCreate(ctx context.Context, s *session, v *nomadVolume) error {
	if size := os.Getenv("DHV_CAPACITY_MIN_BYTES"); size != "" && size != "0" {
		fmt.Fprintf(a.Err, "%s: capacity_min is not passed on: a driver that knows sizes has an option for them, to be given in parameters\n", nomadName)
	}
	job := &spec.Job{Volumes: []spec.Volume{{Driver: v.driver, Name: v.name, Mode: wire.ModeRW, Scope: spec.ScopeHost, Options: v.options}}}
	p, err := s.Prepare(ctx, lifecycle.Request{Container: v.id, Job: job, Labels: v.labels, ExplicitCreate: v.explicit})
	mountpoint := ""
	switch {
	case err == nil:
		mountpoint = p.Volumes[0].Mountpoint
	case wire.AsError(err).Code == wire.Conflict:
		if mountpoint, err = s.nomadAgain(ctx, v); err != nil {
			return err
		}
	default:
		return err
	}
	return writeJSON(a.Out, struct {
		Path  string `json:"path"`
		Bytes int64  `json:"bytes"` // of unknown size
	}{mountpoint, 0})
}

// nomadAgain returns where a volume is that was created before. If its mount was lost, because the plugin was restarted, it is mounted again: a reference
// of Nomad's own, for a moment, sees to it.
func (s *session) nomadAgain(ctx context.Context, v *nomadVolume) (string, error) {
	st, err := s.Status(ctx, lifecycle.StatusQuery{Owner: nomadOwner, Container: v.id})
	if err != nil {
		return "", err
	}
	for _, c := range st.Containers {
		for _, has := range c.Volumes {
			if has.Driver != v.driver || has.Name != v.name {
				return "", wire.Errorf(wire.Conflict, "record", "cannot create volume %s: it was created as %s/%s before", v.id, has.Driver, has.Name)
			}
		}
	}
	info, err := s.VolumeMount(ctx, v.driver, v.name, v.options, true)
	if err != nil {
		return "", err
	}
	if _, err := s.VolumeUnmount(ctx, v.driver, v.name); err != nil && wire.AsError(err).Code != wire.NotFound { // of another create at the same time
		return "", err
	}
	return info.Mountpoint, nil
}

func (a *app) nomadDelete(ctx context.Context, s *session, v *nomadVolume) error {
	if _, err := s.Cleanup(ctx, v.id, lifecycle.CleanupOptions{}); err != nil {
		return err
	}
	if v.named {
		return nil
	}
	_, err := s.VolumeRemove(ctx, v.driver, v.name)
	var e *wire.Error
	if errors.As(err, &e) && e.Code == wire.VolumeNotFound { // it was removed by an earlier call
		return nil
	}
	return err
}
