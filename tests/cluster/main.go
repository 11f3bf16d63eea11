// One binary that is every part of a Kubernetes cluster: the name of the part is its first argument, the part's own
// flags follow. tests/cluster/cluster.py starts the parts, gives them certificates and addresses, and stops them.
package main

import (
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"
	"go.etcd.io/etcd/server/v3/embed"
	"k8s.io/component-base/cli"
	kubectl "k8s.io/kubectl/pkg/cmd"
	apiserver "k8s.io/kubernetes/cmd/kube-apiserver/app"
	controllermanager "k8s.io/kubernetes/cmd/kube-controller-manager/app"
	proxy "k8s.io/kubernetes/cmd/kube-proxy/app"
	scheduler "k8s.io/kubernetes/cmd/kube-scheduler/app"
	kubelet "k8s.io/kubernetes/cmd/kubelet/app"

	_ "k8s.io/component-base/logs/json/register"
)

// parts maps the first argument to the command that runs; each is made only when asked for, since making one
// registers flags and metrics.
var parts = map[string]func() *cobra.Command{
	"etcd":                    etcdCommand,
	"kube-apiserver":          apiserver.NewAPIServerCommand,
	"kube-controller-manager": controllermanager.NewControllerManagerCommand,
	"kube-scheduler":          func() *cobra.Command { return scheduler.NewSchedulerCommand() },
	"kube-proxy":              proxy.NewProxyCommand,
	"kubectl":                 kubectl.NewDefaultKubectlCommand,
}

func main() {
	if len(os.Args) < 2 {
		fail("say which part to run: etcd, kube-apiserver, kube-controller-manager, kube-scheduler, kubelet, kube-proxy or kubectl")
	}
	name := os.Args[1]
	os.Args = append([]string{name}, os.Args[2:]...)
	os.Exit(cli.Run(commandOf(name)))
}

func commandOf(name string) *cobra.Command {
	if name == "kubelet" {
		return kubelet.NewKubeletCommand(kubeletContext())
	}
	make, known := parts[name]
	if !known {
		fail(fmt.Sprintf("no such part of a cluster: %q", name))
	}
	return make()
}

// etcdCommand runs one etcd member on loopback. Its data need not outlive a power cut, so nothing is synced to disk.
func etcdCommand() *cobra.Command {
	var folder, clientURL, peerURL string
	command := &cobra.Command{Use: "etcd", SilenceUsage: true, RunE: func(*cobra.Command, []string) error {
		return runEtcd(folder, clientURL, peerURL)
	}}
	command.Flags().StringVar(&folder, "data-dir", "", "folder of the data")
	command.Flags().StringVar(&clientURL, "listen-client-url", "http://127.0.0.1:2379", "where clients connect")
	command.Flags().StringVar(&peerURL, "listen-peer-url", "http://127.0.0.1:2380", "where other members would connect")
	return command
}

func runEtcd(folder, clientURL, peerURL string) error {
	settings, err := etcdConfig(folder, clientURL, peerURL)
	if err != nil {
		return err
	}
	member, err := embed.StartEtcd(settings)
	if err != nil {
		return err
	}
	defer member.Close()
	stopped := make(chan os.Signal, 1)
	signal.Notify(stopped, syscall.SIGINT, syscall.SIGTERM)
	select {
	case <-stopped:
		return nil
	case err := <-member.Err():
		return err
	}
}

func fail(message string) {
	fmt.Fprintln(os.Stderr, "cluster: "+message)
	os.Exit(2)
}
