//go:build peers

package peers

// make test-peers: rclone with the backends of all its clouds, as it is released.
func init() { rcloneProgram = "rclone-whole" }
