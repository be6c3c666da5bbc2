//! The way from a server's name to addresses that are worth trying: one resolver for every connection.
//!
//! A resolver may fail, hang or lie. So the addresses at which the server has proven to be itself are kept, and are tried
//! after what the resolver says, or after a short head start when it says nothing. Whoever answers must prove to be
//! the server in each case, so a lie costs time and no trust.

mod lookup;
pub mod nat64;
mod order;
mod proven;

use std::collections::VecDeque;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use tokio::time::Instant;
use tunnel_proto::defaults;

use crate::network;
use lookup::Question;
pub use proven::Proven;

/// How long the resolver has before the addresses that were proven last are tried beside it.
const HEAD_START: Duration = Duration::from_millis(300);

/// How long the resolver has when nothing else is known, or to find a translator of IPv4.
const PATIENCE: Duration = defaults::CONNECT_DEADLINE;

/// The addresses of a host, one after the other, as they become known.
#[derive(Debug)]
pub(crate) struct Search {
    host: String,
    port: u16,
    proven: Vec<IpAddr>,
    stage: Stage,
    queue: VecDeque<IpAddr>,
    given: Vec<IpAddr>,
    error: Option<io::Error>,
}

#[derive(Debug)]
enum Stage {
    /// Nothing was asked yet.
    Start,
    /// The resolver is asked; after the first time, what is proven is tried meanwhile.
    Asking {
        question: Question,
        head_start: Option<Instant>,
        deadline: Instant,
    },
    /// All addresses are known; whether IPv4 has to be translated is not.
    Known,
    /// The network's translator is looked for.
    Translating {
        question: Question,
        deadline: Instant,
        stranded: Vec<Ipv4Addr>,
    },
    Done,
}

impl Search {
    /// Starts with a host of which `proven` is known. Nothing is asked before [`Search::next`].
    pub(crate) fn new(host: &str, port: u16, proven: Vec<IpAddr>) -> Self {
        Self {
            host: host.to_owned(),
            port,
            proven,
            stage: Stage::Start,
            queue: VecDeque::new(),
            given: Vec::new(),
            error: None,
        }
    }

    /// Puts an address that answered a moment ago before all others.
    #[must_use]
    pub(crate) fn beginning_with(mut self, ip: Option<IpAddr>) -> Self {
        self.queue.extend(ip);
        self
    }

    /// Returns the next address that is worth trying, or `None` after the last. Nothing is lost when the future is
    /// dropped.
    pub(crate) async fn next(&mut self) -> Option<SocketAddr> {
        loop {
            while let Some(ip) = self.queue.pop_front() {
                if !self.given.contains(&ip) {
                    self.given.push(ip);
                    return Some(SocketAddr::new(ip, self.port));
                }
            }
            self.go_on().await?;
        }
    }

    /// Returns why there was no address, or no other one.
    pub(crate) fn into_error(self) -> io::Error {
        self.error.unwrap_or_else(|| io::ErrorKind::TimedOut.into())
    }

    /// Learns more addresses; `None` when there is nothing more to learn.
    async fn go_on(&mut self) -> Option<()> {
        match &mut self.stage {
            Stage::Start => match self.host.parse::<IpAddr>() {
                Ok(ip) => self.know(Ok(vec![ip])),
                Err(_) => {
                    let now = Instant::now();
                    let head_start = (!self.proven.is_empty()).then(|| now + HEAD_START);
                    self.stage = Stage::Asking {
                        question: Question::ask(&self.host),
                        head_start,
                        deadline: now + PATIENCE,
                    };
                }
            },
            Stage::Asking {
                question,
                head_start,
                deadline,
            } => {
                let until = head_start.unwrap_or(*deadline);
                match tokio::time::timeout_at(until, question.answer()).await {
                    Ok(answer) => self.know(answer),
                    Err(_) if head_start.take().is_some() => self.queue.extend(&self.proven),
                    Err(_) => {
                        let text = format!("`{}` could not be looked up in time", self.host);
                        self.know(Err(io::Error::new(io::ErrorKind::TimedOut, text)));
                    }
                }
            }
            Stage::Known => self.stage = translation(&self.given),
            Stage::Translating {
                question,
                deadline,
                stranded,
            } => {
                let answer = tokio::time::timeout_at(*deadline, question.answer()).await;
                let answer = answer.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
                self.queue
                    .extend(translated(&answer.unwrap_or_default(), stranded));
                self.stage = Stage::Done;
            }
            Stage::Done => return None,
        }
        Some(())
    }

    fn know(&mut self, answer: io::Result<Vec<IpAddr>>) {
        self.stage = Stage::Known;
        let fresh = answer.unwrap_or_else(|error| {
            self.error = Some(error);
            Vec::new()
        });
        self.queue = order::order(&fresh, &self.proven).into();
    }
}

/// Looks for a translator where this machine has a way for IPv6 and none for an IPv4 address that it should reach.
fn translation(given: &[IpAddr]) -> Stage {
    let has_way = |ip: IpAddr| network::source(SocketAddr::new(ip, 1)).is_some();
    let stranded: Vec<Ipv4Addr> = given
        .iter()
        .filter_map(|ip| match ip {
            IpAddr::V4(v4) if !has_way(*ip) => Some(*v4),
            _ => None,
        })
        .collect();
    if stranded.is_empty() || !has_way(IpAddr::V6(SOMEWHERE)) {
        return Stage::Done;
    }
    Stage::Translating {
        question: Question::ask(nat64::WELL_KNOWN_NAME),
        deadline: Instant::now() + PATIENCE,
        stranded,
    }
}

/// Returns where the translator that an answer shows holds addresses.
fn translated(answer: &[IpAddr], addresses: &[Ipv4Addr]) -> Vec<IpAddr> {
    let prefix = nat64::Prefix::discover(&v6_of(answer));
    prefix
        .into_iter()
        .flat_map(|prefix| addresses.iter().map(move |&ip| IpAddr::V6(prefix.embed(ip))))
        .collect()
}

/// An address of the wide network, to see whether there is a way for IPv6 at all: the well-known prefix of RFC 6052.
const SOMEWHERE: Ipv6Addr = Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, 0xc000, 0xaa);

/// What the resolver says of a host at this moment, for a report.
#[derive(Debug)]
pub struct Answer {
    /// The addresses, or why there are none.
    pub found: io::Result<Vec<IpAddr>>,
    /// How long it took.
    pub took: Duration,
}

/// Asks the resolver for a host, with a deadline.
pub async fn ask(host: &str) -> Answer {
    let started = Instant::now();
    let found = match host.parse::<IpAddr>() {
        Ok(ip) => Ok(vec![ip]),
        Err(_) => tokio::time::timeout(PATIENCE, Question::ask(host).answer())
            .await
            .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())),
    };
    Answer {
        found,
        took: started.elapsed(),
    }
}

/// Returns the prefix of the network's translator of IPv4, if it has one.
pub async fn nat64_prefix() -> Option<nat64::Prefix> {
    let found = ask(nat64::WELL_KNOWN_NAME).await.found.ok()?;
    nat64::Prefix::discover(&v6_of(&found))
}

fn v6_of(addresses: &[IpAddr]) -> Vec<Ipv6Addr> {
    let v6 = |ip: &IpAddr| match ip {
        IpAddr::V6(v6) => Some(*v6),
        IpAddr::V4(_) => None,
    };
    addresses.iter().filter_map(v6).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    async fn all(mut search: Search) -> Vec<IpAddr> {
        let mut found = Vec::new();
        while let Some(addr) = search.next().await {
            assert_eq!(addr.port(), 7);
            found.push(addr.ip());
        }
        found
    }

    #[tokio::test]
    async fn an_address_needs_no_resolver() {
        let search = Search::new("127.0.0.1", 7, vec![ip("192.0.2.9")]);
        assert_eq!(all(search).await, [ip("127.0.0.1"), ip("192.0.2.9")]);
    }

    #[tokio::test]
    async fn a_name_without_an_address_leaves_the_last_proven_ones() {
        let proven = vec![ip("127.0.0.2"), ip("127.0.0.3")];
        assert_eq!(all(Search::new("relay.invalid", 7, proven.clone())).await, proven);
        let mut search = Search::new("relay.invalid", 7, vec![]);
        assert_eq!(search.next().await, None);
        assert_ne!(search.into_error().kind(), io::ErrorKind::TimedOut);
    }

    #[tokio::test(start_paused = true)]
    async fn a_resolver_that_hangs_holds_the_proven_ones_up_for_a_head_start_only() {
        let (answer, question) = Question::by_hand();
        let mut search = Search::new("relay.example", 7, vec![ip("192.0.2.9")]);
        let started = Instant::now();
        search.stage = Stage::Asking {
            question,
            head_start: Some(started + HEAD_START),
            deadline: started + PATIENCE,
        };
        assert_eq!(search.next().await.map(|addr| addr.ip()), Some(ip("192.0.2.9")));
        assert_eq!(started.elapsed(), HEAD_START);
        // What it says in the end still counts.
        answer.send_replace(Some(Ok(vec![ip("192.0.2.9"), ip("127.0.0.1")])));
        assert_eq!(search.next().await.map(|addr| addr.ip()), Some(ip("127.0.0.1")));
        assert_eq!(search.next().await, None);
    }

    #[tokio::test]
    async fn what_answered_a_moment_ago_comes_before_the_resolver_is_asked() {
        let search = Search::new("127.0.0.1", 7, vec![]).beginning_with(Some(ip("127.0.0.9")));
        assert_eq!(all(search).await, [ip("127.0.0.9"), ip("127.0.0.1")]);
    }

    #[test]
    fn stranded_addresses_go_through_the_translator() {
        let answer = [ip("192.0.0.170"), ip("64:ff9b::192.0.0.170")];
        let addresses = [Ipv4Addr::new(198, 51, 100, 1)];
        assert_eq!(translated(&answer, &addresses), [ip("64:ff9b::198.51.100.1")]);
        assert!(translated(&answer[..1], &addresses).is_empty());
    }
}
