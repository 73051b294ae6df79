// Cri makes the calls of the CRI (Container Runtime Interface) that kubelet makes for a pod of one container, for tests without a kubelet. A module of its own
// keeps gRPC out of bindgate's.
//
//	cri SOCKET run NAME CGROUP HANDLER ANNOTATIONS     start a pod with busybox that sleeps; prints the ids of its sandbox and of its container
//	cri SOCKET exec CONTAINER PROGRAM ARG...           run something in it
//	cri SOCKET stop SANDBOX                            end and remove a pod
//	cri SOCKET version
//
// A pod is in the host's network, so that no network has to be set up. ANNOTATIONS is an object of JSON. A pod whose container does not start is removed.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func main() {
	if err := run(os.Args[1], os.Args[2], os.Args[3:]); err != nil {
		fmt.Fprintln(os.Stderr, "cri:", err)
		os.Exit(1)
	}
}

func run(socket, verb string, args []string) error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	conn, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer conn.Close()
	c := cri.NewRuntimeServiceClient(conn)
	switch {
	case verb == "version":
		v, err := c.Version(ctx, &cri.VersionRequest{}, grpc.WaitForReady(true))
		if err == nil {
			fmt.Println(v.RuntimeName, v.RuntimeVersion)
		}
		return err
	case verb == "run" && len(args) == 4:
		return pod(ctx, c, args[0], args[1], args[2], args[3])
	case verb == "exec" && len(args) > 1:
		r, err := c.ExecSync(ctx, &cri.ExecSyncRequest{ContainerId: args[0], Cmd: args[1:]})
		if err != nil {
			return err
		}
		os.Stdout.Write(r.Stdout)
		os.Stderr.Write(r.Stderr)
		os.Exit(int(r.ExitCode))
	case verb == "stop" && len(args) == 1:
		return stop(ctx, c, args[0])
	}
	return fmt.Errorf("cannot do %s %q", verb, args)
}

func pod(ctx context.Context, c cri.RuntimeServiceClient, name, cgroup, handler, annotations string) error {
	s := &cri.PodSandboxConfig{Metadata: &cri.PodSandboxMetadata{Name: name, Namespace: "prod", Uid: name}, LogDirectory: "/run/pods/" + name,
		Linux: &cri.LinuxPodSandboxConfig{CgroupParent: cgroup, SecurityContext: &cri.LinuxSandboxSecurityContext{NamespaceOptions: &cri.NamespaceOption{Network: cri.NamespaceMode_NODE}}}}
	if err := json.Unmarshal([]byte(annotations), &s.Annotations); err != nil {
		return err
	}
	sandbox, err := c.RunPodSandbox(ctx, &cri.RunPodSandboxRequest{Config: s, RuntimeHandler: handler})
	if err != nil {
		return err
	}
	k := &cri.ContainerConfig{Metadata: &cri.ContainerMetadata{Name: name}, Image: &cri.ImageSpec{Image: "docker.io/library/busybox:1"}, Command: []string{"sleep", "2147483647"}, LogPath: "log",
		Linux: &cri.LinuxContainerConfig{SecurityContext: &cri.LinuxContainerSecurityContext{NamespaceOptions: &cri.NamespaceOption{Network: cri.NamespaceMode_NODE}}}}
	container, err := c.CreateContainer(ctx, &cri.CreateContainerRequest{PodSandboxId: sandbox.PodSandboxId, Config: k, SandboxConfig: s})
	if err == nil {
		_, err = c.StartContainer(ctx, &cri.StartContainerRequest{ContainerId: container.ContainerId})
	}
	if err != nil {
		if e := stop(ctx, c, sandbox.PodSandboxId); e != nil {
			err = fmt.Errorf("%w; and: %w", err, e)
		}
		return err
	}
	fmt.Println(sandbox.PodSandboxId, container.ContainerId)
	return nil
}

func stop(ctx context.Context, c cri.RuntimeServiceClient, sandbox string) error {
	if _, err := c.StopPodSandbox(ctx, &cri.StopPodSandboxRequest{PodSandboxId: sandbox}); err != nil {
		return err
	}
	_, err := c.RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{PodSandboxId: sandbox})
	return err
}
