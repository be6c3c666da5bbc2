//! A small network of namespaces, carried by this process.

use std::net::IpAddr;
use std::sync::atomic::{AtomicU32, Ordering};

use netlab::config::Lab as Plan;
use netlab::engine::{self, Handle, Port, Request};
use netlab::link::Direction;
use netlab::{sys, world};
use tokio::sync::oneshot;

/// A network; its namespaces end with this value.
pub(crate) struct Lab {
    plan: Plan,
    engine: Handle,
}

impl Lab {
    /// Builds the network that a file of `netlab` describes.
    pub(crate) fn up(text: &str) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let plan = Plan::parse(text, &format!("net{}-{count}", std::process::id())).unwrap();
        let tuns = world::build(&plan).unwrap();
        let ports = plan.sites.iter().zip(tuns).map(|(site, tun)| Port {
            tun,
            address: site.address,
            up: Direction::new(site.up.clone()),
            down: Direction::new(site.down.clone()),
            capture: None,
        });
        let engine = engine::start(ports.collect(), plan.seed).unwrap();
        Self { plan, engine }
    }

    /// Returns the address of a host.
    pub(crate) fn address(&self, host: &str) -> IpAddr {
        self.plan.sites[self.site(host)].address
    }

    /// Makes a runtime whose sockets are a host's.
    pub(crate) fn host(&self, host: &str) -> Host {
        Host::start(&self.plan.namespace(host))
    }

    /// Changes properties of a host's link, as `mtu=1280`.
    pub(crate) fn set(&mut self, host: &str, settings: &[&str]) {
        let port = self.site(host);
        let site = &mut self.plan.sites[port];
        for setting in settings {
            let (key, value) = setting.split_once('=').unwrap();
            site.up.set(key, value).unwrap();
            site.down.set(key, value).unwrap();
        }
        let (up, down) = (site.up.clone(), site.down.clone());
        self.engine.send(Request::Link { port, up, down });
    }

    /// Gives a host another address, and takes the old one away, as `ip addr` does.
    pub(crate) fn move_host(&mut self, host: &str, address: IpAddr) {
        let port = self.site(host);
        world::move_site(&self.plan, &self.plan.sites[port], address).unwrap();
        self.engine.send(Request::Address { port, address });
        self.plan.sites[port].address = address;
    }

    /// Runs `ip` on a host.
    pub(crate) fn ip(&self, host: &str, arguments: &[&str]) {
        let mut command = std::process::Command::new("ip");
        command
            .args(["-netns", &self.plan.namespace(host)])
            .args(arguments);
        let output = command.output().unwrap();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
    }

    /// Returns how many packets were too large for a host's link.
    pub(crate) fn too_big(&self, host: &str) -> u64 {
        let status = &self.engine.status()[self.site(host)];
        let why = netlab::link::Drop::TooBig as usize;
        status.up.1.dropped[why] + status.down.1.dropped[why]
    }

    fn site(&self, host: &str) -> usize {
        self.plan.sites.iter().position(|site| site.name == host).unwrap()
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        world::remove(
            &self
                .plan
                .names()
                .map(|name| self.plan.namespace(name))
                .collect::<Vec<_>>(),
        );
    }
}

/// A thread in a host's namespace with a runtime; what is spawned there has its sockets there.
pub(crate) struct Host {
    runtime: tokio::runtime::Handle,
    end: Option<oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Host {
    fn start(namespace: &str) -> Self {
        let path = world::netns_path(namespace);
        let (end, ended) = oneshot::channel();
        let (started, start) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            sys::enter_netns(&path).unwrap();
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            started.send(runtime.handle().clone()).unwrap();
            let _ = runtime.block_on(ended);
        });
        Self {
            runtime: start.recv().unwrap(),
            end: Some(end),
            thread: Some(thread),
        }
    }

    /// Does something on the host.
    pub(crate) async fn run<F>(&self, work: F) -> F::Output
    where
        F: Future<Output: Send> + Send + 'static,
    {
        self.runtime.spawn(work).await.unwrap()
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        drop(self.end.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
