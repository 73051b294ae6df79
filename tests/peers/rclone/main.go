// Rclone with its local backend only: its own main links the backends of 70 clouds, which takes a gigabyte of modules to build (make test-peers does). The plugin is
// its command "serve docker", unmodified. A module of its own keeps its dependencies out of bindgate's.
package main

import (
	_ "github.com/rclone/rclone/backend/local"
	"github.com/rclone/rclone/cmd"
	_ "github.com/rclone/rclone/cmd/mount"
	_ "github.com/rclone/rclone/cmd/serve/docker"
)

func main() { cmd.Main() }
