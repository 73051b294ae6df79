package cli

import (
	"context"
	"fmt"
	"path/filepath"
	"sync"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/spf13/cobra"

	"github.com/bindgate/bindgate/policy/lifecycle"
)

func (a *app) watchCommand() *cobra.Command {
	var file string
	var o lifecycle.WatchOptions
	cmd := &cobra.Command{
		Use:   "watch [--metrics FILE]",
		Short: "stay, and clean up each container as it ends",
		Long: `Watch waits for the end of each container of --owner, and does what cleanup would. It recovers when it starts and from time to time, and tries again
what is pending: soon at first, then less often, and at once when a process ends that held a mount. It is optional, and may run beside every other command
and beside another watch; killed at any time, it loses nothing.

With --metrics it keeps a file up to date in Prometheus' text format, for node_exporter's textfile collector for example (docs/watch.md has the table).
Started by systemd with Type=notify it says when it is ready and what it does, and serves WatchdogSec=. SIGTERM ends it, exit status 0. --timeout bounds each
cleanup and each recover.`,
		Example: `  bindgate watch --metrics /run/bindgate/metrics/bindgate.prom
  bindgate watch --owner oci --interval 1m`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if o.Interval < time.Second {
				return usageError("cannot use --interval %v: it is under a second", o.Interval)
			}
			m := newMeter(a.owner)
			a.observe = m.call
			o.Limit, a.timeout = a.timeout, 0
			if file != "" {
				a.writes = []string{filepath.Dir(file)}
			}
			ctx, s, err := a.start(cmd)
			if err != nil {
				return err
			}
			defer s.Close()
			if o.Heartbeat, err = daemon.SdWatchdogEnabled(false); err != nil {
				return usageError("cannot understand systemd's watchdog: %v", err)
			}
			o.Heartbeat /= 2
			n := notifier{watchdog: o.Heartbeat > 0}
			defer n.send(daemon.SdNotifyStopping)
			context.AfterFunc(ctx, func() { n.send(daemon.SdNotifyStopping) })
			o.Report = n.report
			if file != "" {
				m.file = file
				if err := m.write(s.Isolator); err != nil { // so that a mistake is seen at once
					return err
				}
				kept, end := context.WithCancel(context.Background())
				var wait sync.WaitGroup
				defer wait.Wait()
				defer end()
				wait.Go(func() { m.keep(kept, s) })
				o.Report = func(st lifecycle.WatchState) { m.watching(st); n.report(st) }
			}
			return s.Watch(ctx, o)
		},
	}
	cmd.Flags().StringVar(&file, "metrics", "", "keep metrics in `FILE`, in Prometheus' text format")
	cmd.Flags().DurationVar(&o.Interval, "interval", 5*time.Minute, "recover this often while all is well")
	return cmd
}

// A notifier tells systemd how it goes, if that started us: sd_notify(3).
type notifier struct {
	watchdog bool
	ready    bool
	status   string
}

func (n *notifier) send(state string) { _, _ = daemon.SdNotify(false, state) }

// report is called by the loop that does the watching, so that it keeps the watchdog content only while that goes round.
func (n *notifier) report(s lifecycle.WatchState) {
	status := fmt.Sprintf("STATUS=waiting for the end of %d containers", s.Containers)
	if s.Last != nil {
		status += "; recovered " + s.LastBegan.Format(time.RFC3339)
		if s.LastErr != nil {
			status += fmt.Sprintf(", %d pending, %d errors", len(s.Last.Pending), len(s.Last.Errors))
		}
	}
	state := ""
	if !n.ready {
		state += daemon.SdNotifyReady + "\n"
	}
	if status != n.status {
		state += status + "\n"
	}
	if n.watchdog {
		state += daemon.SdNotifyWatchdog + "\n"
	}
	if state != "" {
		n.send(state)
	}
	n.ready, n.status = true, status
}
