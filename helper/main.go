// bindgate-helper is the privileged core of bindgate: setuid root, 4750 root:<policy group>, one request on descriptor 0, one reply on descriptor 1. It believes nothing that it is told. This file reads
// top to bottom like the table in the design's section 5: each call is a step, in this order and no other. A step that fails ends the run (namespace.Check); what was begun is undone.
//
//go:debug containermaxprocs=0
//go:debug updatemaxprocs=0
package main

import (
	"os"
	"runtime"
	"sync/atomic"
	"time"

	"github.com/bindgate/bindgate/conf"
	"github.com/bindgate/bindgate/namespace"
	"github.com/bindgate/bindgate/privops"
	"github.com/bindgate/bindgate/state"
	"github.com/bindgate/bindgate/wire"
)

func init() { runtime.LockOSThread() } // namespaces, capabilities and file system ids belong to a thread: ours is the first

// A session is one run: who asks, and what was opened before anything of the caller's was read.
type session struct {
	callerUID, callerGID uint32 // of who started us, or of who is at the other end of our own socket
	callerPID, peer      int    // peer is a pidfd of who is at the other end; our parent needs none
	callerExe            string
	started              time.Time
	host                 *namespace.Host
	config               *conf.Helper
	ledger               *state.Ledger
	log, syslog          int           // the audit log, -1 until it was opened; a datagram socket, connected if there is a syslog
	request              *wire.Request // nil until it was read
	whose                state.Whose   // the container that it is about
	targetNS             atomic.Uint64 // mount namespace of the target, once it is known
	finished             atomic.Bool   // the outcome is known: there is only one
}

func main() {
	s, blocks := &session{started: time.Now(), log: -1}, []wire.Fields(nil)
	err := namespace.Try(func() {
		startClean()                                     // 1: arguments, environment, signals, timers, limits, descriptors, umask, working directory
		s.becomeRoot()                                   // 2: who calls; uid 0 in all three ids; not dumpable
		s.host = namespace.OpenHost(s.callerPID, s.peer) // 3: procfs, and what is the host's or the caller's
		s.config = must(conf.LoadHelper())               // 4: helper.toml and all above it are root's
		s.open()                                         // 3: ledger and audit log, as helper.toml says
		privops.Reduce(s.host)                           // 5: capabilities, no_new_privs, system call filter; read back
		s.request = readRequest()                        // 6: with a deadline and a size limit
		s.startDeadline()
		s.authorise()
		privops.Confine(s.request.Op, 0)
		blocks = map[string]func(*wire.Request) []wire.Fields{wire.OpAttach: s.attach, wire.OpDetach: s.detach, wire.OpQuery: s.query, wire.OpSweep: s.sweep,
			wire.OpCreateVolume: s.volume, wire.OpRemoveVolume: s.volume, wire.OpListVolumes: s.volume}[s.request.Op](s.request) // 7 to 11
	})
	privops.Relinquish() // 12
	os.Exit(s.finish(blocks, err))
}

// must ends the run with an error of the packages that both processes use.
func must[T any](v T, err error) T { namespace.Pass(err); return v }
