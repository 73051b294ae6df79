// Package conf holds both TOML files of an installation: their keys, defaults and validation, and who may own them; and the paths that are compiled
// into both binaries. The helper believes no path from argv or the environment.
package conf

// Set by the linker (-X) from the make variables of the same names.
var (
	prefix        = "/usr/local"
	sysconfdir    = "/etc"
	localstatedir = "/var"
	rundir        = "/run"
	user          = "bindgate"
	version       = "dev"
)

// Prefix is where the binaries are installed.
func Prefix() string { return prefix }

// User is the name of the policy user, the one who may call the setuid helper besides helper.toml's callers.
func User() string { return user }

// Version is the version that both binaries were built as.
func Version() string { return version }

// HelperTOML is the helper's configuration file.
func HelperTOML() string { return sysconfdir + "/bindgate/helper.toml" }

// PolicyTOML is the policy process' configuration file.
func PolicyTOML() string { return sysconfdir + "/bindgate/policy.toml" }

// HelperPath is the privileged binary.
func HelperPath() string { return prefix + "/libexec/bindgate/bindgate-helper" }

// HelperSocket is where systemd listens for the socket transport.
func HelperSocket() string { return rundir + "/bindgate/helper.sock" }

// RunDir is the run directory, which holds the ledger.
func RunDir() string { return rundir + "/bindgate" }

// LedgerDir holds the helper's records; root's, 0700.
func LedgerDir() string { return RunDir() + "/ledger" }

// StateDir holds what outlives a boot: the journal and the local volumes.
func StateDir() string { return localstatedir + "/lib/bindgate" }

// JournalDir holds the policy process' records; the policy user's, 0700.
func JournalDir() string { return StateDir() + "/journal" }

// VolumesDir holds the volumes of the local driver; root's, 0700.
func VolumesDir() string { return StateDir() + "/volumes" }

// AuditFile is where the helper writes its audit lines unless helper.toml says otherwise.
func AuditFile() string { return localstatedir + "/log/bindgate/audit.jsonl" }
