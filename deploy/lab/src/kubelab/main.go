// Kubelab is one Kubernetes node in one program: the unmodified upstream components, chosen by the first
// argument. One program instead of five links the shared libraries once: 100 MB instead of 400, and one build.
package main

import (
	"context"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"go.etcd.io/etcd/server/v3/etcdmain"
	"k8s.io/component-base/cli"
	_ "k8s.io/component-base/metrics/prometheus/clientgo" // client metrics
	_ "k8s.io/component-base/metrics/prometheus/version"  // kubernetes_build_info
	apiserver "k8s.io/kubernetes/cmd/kube-apiserver/app"
	controllers "k8s.io/kubernetes/cmd/kube-controller-manager/app"
	scheduler "k8s.io/kubernetes/cmd/kube-scheduler/app"
	kubelet "k8s.io/kubernetes/cmd/kubelet/app"
)

// etcd is a component here because the one that Debian 12 has (3.4) does not answer the progress requests that
// a current API server's watch cache sends.
var components = map[string]func(arguments []string){
	"etcd":                    func(arguments []string) { etcdmain.Main(append([]string{"etcd"}, arguments...)) },
	"kube-apiserver":          run(func() *cobra.Command { return apiserver.NewAPIServerCommand() }),
	"kube-controller-manager": run(controllers.NewControllerManagerCommand),
	"kube-scheduler":          run(func() *cobra.Command { return scheduler.NewSchedulerCommand() }),
	"kubelet":                 run(func() *cobra.Command { return kubelet.NewKubeletCommand(context.Background()) }),
}

// The commands register flags and metrics when they are made, so only the chosen one is.
func run(command func() *cobra.Command) func([]string) {
	return func(arguments []string) {
		chosen := command()
		chosen.SetArgs(arguments)
		os.Exit(cli.Run(chosen))
	}
}

func main() {
	if len(os.Args) > 1 {
		if component, known := components[os.Args[1]]; known {
			component(os.Args[2:])
			return
		}
	}
	names := slices.Sorted(maps.Keys(components))
	fmt.Fprintf(os.Stderr, "usage: kubelab %s FLAGS\n", strings.Join(names, "|"))
	os.Exit(2)
}
