// Package conf holds helper.toml: its keys, defaults and validation; how a TOML file of the installation is read, and who may own it (policy.toml's keys are in policy/config); and the paths that are compiled
// into both binaries. The helper believes no path from argv or the environment.
package conf

// Set by the linker (-X) from the make variables of the same names.
var prefix, sysconfdir, localstatedir, rundir, user, version = "/usr/local", "/etc", "/var", "/run", "bindgate", "dev"

// User is the name of the policy user, the one who may call the setuid helper besides helper.toml's callers; Version is what both binaries were built as; the others are the paths of the installation.
func User() string         { return user }
func Version() string      { return version }
func HelperPath() string   { return prefix + "/libexec/bindgate/bindgate-helper" }
func HelperTOML() string   { return sysconfdir + "/bindgate/helper.toml" }
func PolicyTOML() string   { return sysconfdir + "/bindgate/policy.toml" }
func RunDir() string       { return rundir + "/bindgate" }
func LedgerDir() string    { return rundir + "/bindgate/ledger" }             // the helper's records; root's, 0700
func HelperSocket() string { return rundir + "/bindgate/helper.sock" }        // where systemd listens for the socket transport
func JournalDir() string   { return localstatedir + "/lib/bindgate/journal" } // the policy process' records; its user's, 0700
func VolumesDir() string   { return localstatedir + "/lib/bindgate/volumes" } // the local driver's volumes; root's, 0700
func AuditFile() string    { return localstatedir + "/log/bindgate/audit.jsonl" }

// Own are the folders that are nobody's volume: what is in them is ours.
func Own() []string {
	return []string{RunDir(), JournalDir(), sysconfdir + "/bindgate", prefix + "/libexec/bindgate", localstatedir + "/log/bindgate"}
}
