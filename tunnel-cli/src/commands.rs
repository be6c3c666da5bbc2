//! The commands that ask the server something and show the answer.

pub mod access;
pub mod approvals;
pub mod audit;
pub mod cut;
pub mod devices;
pub mod doctor;
pub mod lock;
pub mod login;
pub mod members;
pub mod notifications;
pub mod outages;
pub mod policy;
pub mod run;
pub mod sessions;
pub mod ssh;
pub mod status;
pub mod suspension;
pub mod tunnels;
pub mod why;

use jiff::Timestamp;

use crate::api::Api;
use crate::failure::Failure;
use crate::home::{Home, Login};
use crate::output::Output;

/// What every command has at hand.
#[derive(Debug)]
pub struct Context {
    /// Where the login is.
    pub home: Home,
    /// Where results go.
    pub output: Output,
}

impl Context {
    /// Returns the login and a caller that proves it.
    ///
    /// # Errors
    /// Tells that there is no login that counts.
    pub fn api(&self) -> Result<(Login, Api), Failure> {
        let login = self.home.login()?;
        let api = Api::new(&login);
        Ok((login, api))
    }
}

/// Writes a time as people read it, in UTC; what is no time is written as the number that it is.
pub fn time_text(secs: u64) -> String {
    i64::try_from(secs)
        .ok()
        .and_then(|secs| Timestamp::from_second(secs).ok())
        .map_or_else(|| secs.to_string(), |time| time.to_string())
}

/// Writes names in one cell.
pub fn list_text(names: &[String]) -> String {
    if names.is_empty() {
        "-".to_owned()
    } else {
        names.join(",")
    }
}

/// Writes a number of bytes roughly.
pub fn bytes_text(bytes: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < units.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 {
        format!("{bytes} B")
    } else {
        format!("{value:.1} {}", units[unit])
    }
}
