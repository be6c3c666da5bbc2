//! A large fleet in one process: devices that are linked and do as agents do, and operators that open tunnels, each as
//! light as it can be. The server is the real program; nothing of it is left out.

mod device;
mod policies;
mod pulse;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, anyhow, bail};
use tokio::runtime::Runtime;
use tokio::sync::{Semaphore, oneshot};
use tokio::task::JoinSet;
use tunnel_certs::{KeyPair, Trust};
use tunnel_cli::api::Api;
use tunnel_cli::home::{Home, Login};
use tunnel_e2e::bare::BareLeg;
use tunnel_e2e::fleet::Fleet;
use tunnel_e2e::operator::Operator;
use tunnel_net::clock::SystemClock;
use tunnel_net::tls::{self, Credentials, Ends};
use tunnel_proto::api::{AttachTunnel, AuditRecord, EnrolRequest, MakeEnrolCode, OpenTunnel, PolicyText};
use tunnel_proto::bind::Role;
use tunnel_proto::enrol::EnrolCode;
use tunnel_proto::ids::{hex, unhex};
use tunnel_proto::keys::{LegKey, Secret};
use tunnel_proto::message::Attached;
use tunnel_proto::{DeviceId, TunnelId};

pub use policies::{ALLOW_ALL, many};
pub use pulse::Pulse;

/// The service of every device.
const SERVICE: &str = "echo";

/// What is done at once: below the thirty enrolments that the server lets one address try before it knows how they end.
const AT_ONCE: usize = 24;

/// Operators that tunnels are asked for by, in turns: each may ask for so many.
pub const OPERATORS: usize = 20;

/// How long one step of one of them may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// What the devices' legs were admitted with, by tunnel, or who waits for that.
type Admitted = Arc<Mutex<HashMap<TunnelId, Slot>>>;

#[derive(Debug)]
enum Slot {
    There(Attached),
    Waits(oneshot::Sender<Attached>),
}

/// The fleet. It ends when it is dropped.
#[derive(Debug)]
pub struct Crowd {
    /// The server and its first operator.
    pub fleet: Fleet,
    admin: Api,
    operators: Vec<Login>,
    devices: Vec<DeviceId>,
    admitted: Admitted,
    /// The last record of the audit chain that was looked at.
    seen: u64,
    tasks: JoinSet<()>,
    runtime: Runtime,
}

/// A tunnel whose legs are in the hands of the bench, and who waits for its end as the CLI does.
#[derive(Debug)]
pub struct Opened {
    /// The tunnel.
    pub id: TunnelId,
    /// Which device it leads to.
    pub device: DeviceId,
    /// The operator's leg.
    pub source: BareLeg,
    /// The device's leg.
    pub destination: BareLeg,
}

impl Crowd {
    /// Starts a server, enrols devices and operators, and links the devices.
    ///
    /// # Errors
    /// Fails when the server refuses one of them.
    pub fn gather(devices: usize, progress: &dyn Fn(&str)) -> Result<Self> {
        let fleet = Fleet::on_loopback();
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        let operators = (0..OPERATORS).map(|number| login(&fleet.technician(&format!("o{number}"))));
        let operators = operators.collect::<Result<Vec<_>>>()?;
        let admin = Api::new(&login(&fleet.admin)?);
        let mut crowd = Self {
            fleet,
            admin,
            operators,
            devices: (0..devices)
                .map(|number| format!("d{number}").parse())
                .collect::<Result<_, _>>()?,
            admitted: Admitted::default(),
            seen: 0,
            tasks: JoinSet::new(),
            runtime,
        };
        progress(&format!("enrolling {devices} devices"));
        let enrolled = crowd.enrol()?;
        progress(&format!("linking {devices} devices"));
        crowd.link(enrolled)?;
        Ok(crowd)
    }

    /// Returns how many devices there are.
    pub fn len(&self) -> usize {
        self.devices.len()
    }

    /// Says whether there are none.
    pub fn is_empty(&self) -> bool {
        self.devices.is_empty()
    }

    fn enrol(&mut self) -> Result<Vec<(DeviceId, Credentials)>> {
        let request = MakeEnrolCode {
            kind: "device".into(),
            group: Some("g0".into()),
            uses: u32::try_from(self.devices.len()).ok(),
            ..MakeEnrolCode::default()
        };
        let made = self.runtime.block_on(self.admin.enrol_code(&request));
        let code = EnrolCode::from_text(&made.map_err(failed)?.code)?;
        let server = code.server.parse()?;
        let tls = tls::enrol_client(code.root_fingerprint, Arc::new(SystemClock));
        let api = Api::with_tls(server, tls);
        let secret = hex(code.secret.expose());
        let shares = shares(&self.devices);
        self.runtime.block_on(async {
            let mut tasks = JoinSet::new();
            for share in shares {
                let (mut api, secret) = (api.again(), secret.clone());
                tasks.spawn(async move {
                    let mut enrolled = Vec::with_capacity(share.len());
                    for id in share {
                        let key = KeyPair::generate()?;
                        let request = EnrolRequest {
                            secret: secret.clone(),
                            id: Some(id.to_string()),
                            csr: tunnel_certs::request(&key)?,
                        };
                        let answer = api.enrol(&request).await.map_err(failed)?;
                        let credentials = Credentials::load(&answer.chain, &key.to_pem())?;
                        enrolled.push((id, credentials));
                    }
                    anyhow::Ok(enrolled)
                });
            }
            gather(tasks).await.map(|all| all.into_iter().flatten().collect())
        })
    }

    fn link(&mut self, enrolled: Vec<(DeviceId, Credentials)>) -> Result<()> {
        let server = self.fleet.server.address();
        let root = std::fs::read_to_string(self.fleet.admin.home().join("root.pem"))?;
        let ends = Ends::new(Arc::new(Trust::from_pem(&root)?), Arc::new(SystemClock));
        let room = Arc::new(Semaphore::new(AT_ONCE));
        let admitted = self.admitted.clone();
        let tasks = &mut self.tasks;
        self.runtime.block_on(async {
            let mut linking = JoinSet::new();
            for share in enrolled.chunks(device::PER_SOCKET) {
                let endpoint = device::endpoint()?;
                for (_, credentials) in share {
                    let (endpoint, credentials) = (endpoint.clone(), credentials.clone());
                    let (ends, room) = (ends.clone(), room.clone());
                    linking.spawn(async move {
                        device::link(&endpoint, server, &ends, &credentials, &room).await
                    });
                }
            }
            for link in gather(linking).await? {
                tasks.spawn(link.serve(admitted.clone()));
            }
            anyhow::Ok(())
        })
    }

    /// Puts a policy in force.
    ///
    /// # Errors
    /// Fails when the server refuses it.
    pub fn apply(&mut self, text: &str) -> Result<()> {
        let request = PolicyText {
            text: text.to_owned(),
            if_revision: None,
        };
        let applied = self.runtime.block_on(self.admin.policy_apply(&request));
        applied.map(drop).map_err(failed)
    }

    /// Runs something of the administrator's.
    pub fn block_on<T>(&mut self, work: impl AsyncFnOnce(&mut Api) -> T) -> T {
        self.runtime.block_on(work(&mut self.admin))
    }

    /// Returns when the newest record of a kind was written since this was asked last, in milliseconds since 1970: just
    /// before its commit, and cut off to a whole millisecond.
    ///
    /// # Errors
    /// Fails when there is none.
    pub fn written(&mut self, kind: &str) -> Result<SystemTime> {
        let records = self.records()?;
        let record = records.iter().rev().find(|record| record.kind == kind);
        let record = record.with_context(|| format!("no record of {kind}"))?;
        Ok(UNIX_EPOCH + Duration::from_millis(record.time_millis))
    }

    fn records(&mut self) -> Result<Vec<AuditRecord>> {
        let mut all = Vec::new();
        loop {
            let page = self.runtime.block_on(self.admin.audit("", self.seen, 500));
            let page = page.map_err(failed)?.records;
            let Some(last) = page.last() else { return Ok(all) };
            self.seen = last.seq;
            all.extend(page);
        }
    }

    /// Opens tunnels, each to another device as long as there are any, and closes them again. Returns how long it took until
    /// all legs were admitted.
    ///
    /// # Errors
    /// Fails when one is refused.
    pub fn open_and_close(&mut self, count: usize) -> Result<Duration> {
        let begun = std::time::Instant::now();
        let opened = self.open_all(count)?;
        let took = begun.elapsed();
        let shares = shares(
            &opened
                .iter()
                .map(|(open, ..)| (open.by, open.id))
                .collect::<Vec<_>>(),
        );
        let apis: Vec<Api> = self.operators.iter().map(Api::new).collect();
        self.runtime.block_on(async {
            let mut tasks = JoinSet::new();
            for share in shares {
                let mut apis: Vec<Api> = apis.iter().map(Api::again).collect();
                tasks.spawn(async move {
                    for (by, id) in share {
                        apis[by].close(id).await.map_err(failed)?;
                    }
                    Ok(())
                });
            }
            gather(tasks).await.map(drop)
        })?;
        Ok(took)
    }

    /// Opens tunnels with both legs bound, and waits for the end of each as the CLI does.
    ///
    /// # Errors
    /// Fails when one is refused.
    pub fn open(&mut self, count: usize) -> Result<Vec<Opened>> {
        let relay = self.fleet.server.address();
        let opened = self.open_all(count)?;
        let mut waiting = Vec::new();
        let mut tunnels = Vec::new();
        for (open, source, destination) in opened {
            let mut pair = [(Role::Source, source), (Role::Destination, destination)]
                .map(|(role, (circuit, key))| BareLeg::new(relay, circuit, role, key));
            pair.iter_mut().for_each(BareLeg::bind);
            let [source, destination] = pair;
            waiting.push((Api::new(&self.operators[open.by]), open.id));
            tunnels.push(Opened {
                id: open.id,
                device: self.devices[open.to].clone(),
                source,
                destination,
            });
        }
        let room = Arc::new(Semaphore::new(AT_ONCE));
        let tasks = &mut self.tasks;
        self.runtime.block_on(async {
            for (mut api, id) in waiting {
                // The handshake; the request itself waits for minutes.
                let place = room.clone().acquire_owned().await?;
                tasks.spawn(async move {
                    let connected = api.tunnel(id).await;
                    drop(place);
                    if connected.is_ok() {
                        let _ = api.wait_end(id).await;
                    }
                });
            }
            let _all = room.acquire_many(AT_ONCE as u32).await?;
            anyhow::Ok(())
        })?;
        while self.tasks.try_join_next().is_some() {}
        Ok(tunnels)
    }

    /// Opens tunnels until both legs of each are admitted.
    fn open_all(&mut self, count: usize) -> Result<Vec<(Open, Key, Key)>> {
        let wishes: Vec<Open> = (0..count)
            .map(|number| Open {
                by: number % self.operators.len(),
                to: number % self.devices.len(),
                id: TunnelId::from_bytes([0; 16]),
            })
            .collect();
        let apis: Vec<Api> = self.operators.iter().map(Api::new).collect();
        let (devices, admitted) = (Arc::new(self.devices.clone()), self.admitted.clone());
        let shares = shares(&wishes);
        let opened = self.runtime.block_on(async {
            let mut tasks = JoinSet::new();
            for share in shares {
                // Each operator has connections of its own, as each run of the CLI has.
                let mut apis: Vec<Api> = apis.iter().map(Api::again).collect();
                let (devices, admitted) = (devices.clone(), admitted.clone());
                tasks.spawn(async move {
                    let mut opened = Vec::with_capacity(share.len());
                    for wish in share {
                        let api = &mut apis[wish.by];
                        opened.push(open_one(api, wish, &devices[wish.to], &admitted).await?);
                    }
                    anyhow::Ok(opened)
                });
            }
            gather(tasks).await
        })?;
        Ok(opened.into_iter().flatten().collect())
    }
}

/// A tunnel by the numbers of its operator and its device.
#[derive(Clone, Copy)]
struct Open {
    by: usize,
    to: usize,
    id: TunnelId,
}

type Key = (tunnel_proto::CircuitId, LegKey);

async fn open_one(
    api: &mut Api,
    wish: Open,
    device: &DeviceId,
    admitted: &Admitted,
) -> Result<(Open, Key, Key)> {
    let request = OpenTunnel {
        device: device.to_string(),
        services: vec![SERVICE.into()],
        ttl_secs: None,
        reason: Some("INC-7".into()),
        permit: None,
        break_glass: false,
        batch: None,
    };
    let answer = api.open(&request).await.map_err(failed)?;
    let redeem = AttachTunnel { token: answer.token };
    let source = api.attach(answer.tunnel, &redeem).await.map_err(failed)?;
    let key = unhex(&source.leg_key).context("a leg key")?;
    let theirs = admission(admitted, answer.tunnel);
    let theirs = tokio::time::timeout(PATIENCE, theirs).await??;
    let open = Open {
        id: answer.tunnel,
        ..wish
    };
    Ok((
        open,
        (source.circuit, LegKey::new(Secret::new(key))),
        (theirs.circuit, LegKey::new(theirs.leg_key)),
    ))
}

/// Waits until the device's leg of a tunnel is admitted.
async fn admission(admitted: &Admitted, tunnel: TunnelId) -> Result<Attached> {
    let waits = {
        let mut all = admitted.lock().unwrap_or_else(PoisonError::into_inner);
        match all.remove(&tunnel) {
            Some(Slot::There(attached)) => return Ok(attached),
            _ => {
                let (tell, told) = oneshot::channel();
                all.insert(tunnel, Slot::Waits(tell));
                told
            }
        }
    };
    Ok(waits.await?)
}

/// Notes what a device's leg was admitted with.
fn admit(admitted: &Admitted, attached: Attached) {
    let mut all = admitted.lock().unwrap_or_else(PoisonError::into_inner);
    match all.remove(&attached.tunnel) {
        Some(Slot::Waits(tell)) => drop(tell.send(attached)),
        _ => drop(all.insert(attached.tunnel, Slot::There(attached))),
    }
}

fn login(operator: &Operator) -> Result<Login> {
    let home = Home::find(Some(&operator.home()));
    home.and_then(|home| home.login())
        .map_err(|failure| anyhow!("{failure:?}"))
}

fn failed(error: tunnel_cli::http::HttpError) -> anyhow::Error {
    anyhow!("{}: {error:?}", error.code())
}

/// Deals things out to workers that go on at the same time.
fn shares<T: Clone>(all: &[T]) -> Vec<Vec<T>> {
    (0..AT_ONCE)
        .map(|worker| all.iter().skip(worker).step_by(AT_ONCE).cloned().collect())
        .collect()
}

/// Waits for all.
async fn gather<T: 'static>(mut tasks: JoinSet<Result<T>>) -> Result<Vec<T>> {
    let mut all = Vec::with_capacity(tasks.len());
    while let Some(done) = tasks.join_next().await {
        match done? {
            Ok(done) => all.push(done),
            Err(error) => bail!("one of many failed: {error:#}"),
        }
    }
    Ok(all)
}
