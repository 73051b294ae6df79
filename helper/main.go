// bindgate-helper is the privileged core of bindgate: setuid root, 4750 root:<policy group>, one request on descriptor 0, one reply on descriptor 1. It believes nothing that it is told. This file
// reads top to bottom like the table in the design's section 5; each call is a step, in this order and no other.
//
//go:debug containermaxprocs=0
package main

import (
	"os"
	"runtime"

	"github.com/bindgate/bindgate/conf"
	"github.com/bindgate/bindgate/namespace"
	"github.com/bindgate/bindgate/privops"
	"github.com/bindgate/bindgate/state"
	"github.com/bindgate/bindgate/wire"
)

func init() { runtime.LockOSThread() } // namespaces, capabilities and file system ids belong to a thread: ours is the first

func main() {
	os.Exit(finish(run()))
}

// A session is one run: who asks, and what was opened before anything of the caller's was read.
type session struct {
	caller caller
	host   *namespace.Host
	config *conf.Helper
	ledger *state.Ledger
	audit  *audit
}

func run() ([]wire.Fields, error) {
	s := &session{}
	if err := startClean(); err != nil { // 1: arguments, environment, signals, timers, limits, descriptors, umask, working directory
		return nil, err
	}
	var err error
	if s.caller, err = becomeRoot(); err != nil { // 2: who calls; uid 0 in all ids; not dumpable
		return nil, err
	}
	if s.host, err = namespace.OpenHost(); err != nil { // 3: procfs, and what is the host's
		return nil, err
	}
	if s.config, err = conf.LoadHelper(); err != nil { // 4: helper.toml and all above it are root's
		return nil, err
	}
	if err = s.open(); err != nil { // 3: ledger, audit
		return nil, err
	}
	if err = privops.Reduce(s.host.Proc); err != nil { // 5: capabilities, no_new_privs, system call filter; read back
		return nil, err
	}
	request, err := readRequest() // 6: with a deadline and a size limit
	if err == nil {
		err = s.authorise()
	}
	if err == nil {
		err = privops.Confine(request.Op)
	}
	var blocks []wire.Fields
	if err == nil {
		blocks, err = s.act(request) // 7 to 11
	}
	privops.Relinquish() // 12: nothing below needs privilege
	return blocks, s.audit.outcome(request, blocks, err)
}

// act does one operation.
func (s *session) act(r *wire.Request) ([]wire.Fields, error) {
	switch r.Op {
	case wire.OpAttach:
		return s.attach(r)
	case wire.OpDetach:
		return s.detach(r)
	case wire.OpQuery:
		return s.query(r)
	case wire.OpSweep:
		return s.sweep(r)
	default:
		return s.volumes(r)
	}
}
