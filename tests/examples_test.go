package tests

import (
	"os"
	"regexp"
	"testing"

	"github.com/bindgate/bindgate/conf"
	"github.com/bindgate/bindgate/policy/spec"
)

// What examples/kubernetes shows is what the programs read.
func TestKubernetesExamples(t *testing.T) {
	helper, err := os.ReadFile("../examples/kubernetes/helper.toml")
	if err != nil {
		t.Fatal(err)
	}
	if h, err := conf.ParseHelper(helper); err != nil || len(h.Sources) != 2 || len(h.Targets.Cgroups) != 1 || len(h.Targets.RootfsRoots) != 1 {
		t.Errorf("helper.toml: %+v, %v", h, err)
	}
	pod, err := os.ReadFile("../examples/kubernetes/pod.yaml")
	if err != nil {
		t.Fatal(err)
	}
	volumes := regexp.MustCompile(`io\.bindgate\.volume\.\d: "(.*)"`).FindAllSubmatch(pod, -1)
	if len(volumes) != 2 {
		t.Fatalf("pod.yaml: %q", volumes)
	}
	for _, v := range volumes {
		if _, err := spec.ParseMountFlag(string(v[1]), spec.Defaults{}); err != nil {
			t.Errorf("pod.yaml: %v", err)
		}
	}
}
