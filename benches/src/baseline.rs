//! Small programs to compare with: what one would build first. They run as processes of this crate's binary, so that the
//! CPU and memory of each part is told apart, as it is for the programs under test.

pub mod identity;
pub mod quic;
pub mod splice;

use std::io::Write;
use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::Result;
use clap::Subcommand;

/// Which part of a baseline a process is.
#[derive(Debug, Subcommand)]
pub enum Part {
    /// A blind TCP relay, or an end of one: what comes in goes out.
    Splice {
        /// Where it listens.
        listen: SocketAddr,
        /// Where it connects to.
        target: SocketAddr,
    },
    /// The relay of hop-by-hop QUIC.
    QuicRelay {
        /// Directory of the certificate.
        identity: PathBuf,
        /// Where it listens.
        listen: SocketAddr,
    },
    /// The device's end of hop-by-hop QUIC.
    QuicFar {
        /// Directory of the certificate.
        identity: PathBuf,
        /// Where the relay is.
        relay: SocketAddr,
        /// Where it connects to for each stream.
        target: SocketAddr,
    },
    /// The operator's end of hop-by-hop QUIC.
    QuicNear {
        /// Directory of the certificate.
        identity: PathBuf,
        /// Where the relay is.
        relay: SocketAddr,
        /// Where it listens.
        listen: SocketAddr,
    },
}

/// What a baseline says once it works, before its address.
pub const READY: &str = "ready on";

/// Runs a part until it is ended from outside.
///
/// # Errors
/// Fails when it cannot start, or loses its relay.
pub fn run(part: &Part) -> Result<()> {
    // As the programs under test; on a machine with two cores it is also the fastest.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        match part {
            Part::Splice { listen, target } => splice::run(*listen, *target).await,
            Part::QuicRelay { identity, listen } => quic::relay(identity, *listen).await,
            Part::QuicFar {
                identity,
                relay,
                target,
            } => quic::far(identity, *relay, *target).await,
            Part::QuicNear {
                identity,
                relay,
                listen,
            } => quic::near(identity, *relay, *listen).await,
        }
    })
}

/// Tells whoever started this process that it works.
fn ready(address: SocketAddr) -> Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{READY} {address}")?;
    Ok(out.flush()?)
}
