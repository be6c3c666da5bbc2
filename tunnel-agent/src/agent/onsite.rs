//! What those on site see and say, and the owner's maintenance windows.

use std::time::Instant;

use serde_json::json;
use tunnel_net::clock::Clock as _;
use tunnel_proto::code::Code;
use tunnel_proto::{TunnelId, UnixTime};

use super::{Agent, Live};
use crate::moment::Moment;
use crate::site::Word;

impl Agent {
    /// Shows on site who is connected, and who asks.
    pub(super) fn show_on_site(&mut self) {
        let Some(time) = self.server_time else { return };
        let at = |instant: Instant| {
            let later = instant.saturating_duration_since(Instant::now());
            time.now(Instant::now()).after(later)
        };
        let shown = self.tunnels.iter().filter(|(_, live)| live.end.is_some());
        let shown = shown.map(|(id, live)| {
            let (grant, asks_until) = (&live.right.grant, live.consent.asks_until());
            json!({
                "tunnel": id.to_string(),
                "operator": grant.operator.to_string(),
                "services": services(live),
                "reason": grant.reason.as_deref().unwrap_or("no reason given"),
                "since": grant.issued_at.as_secs(),
                "expires_at": live.right.expires_at().as_secs(),
                "until": clock_text(asks_until.map_or(live.right.expires_at(), at)),
                "asks": asks_until.is_some(),
            })
        });
        let text = serde_json::Value::Array(shown.collect()).to_string();
        self.site.show(text);
    }

    /// Does what was said on site.
    pub(super) fn handle_site(&mut self) {
        let said = self.site.take(|tunnel| self.tunnels.contains_key(&tunnel));
        for (tunnel, word) in said {
            tracing::info!(tunnel = tunnel.fmt_short(), ?word, "said on site");
            match word {
                Word::Allow => self.answer(tunnel, true),
                Word::Deny => self.answer(tunnel, false),
                Word::End => self.end_tunnel(tunnel, Code::EndedOnSite),
            }
        }
    }

    fn answer(&self, tunnel: TunnelId, yes: bool) {
        if let Some(live) = self.tunnels.get(&tunnel) {
            live.consent.answer(yes);
        }
    }

    /// Returns what time it is, once a server has said its own.
    fn moment(&self) -> Option<Moment> {
        let server = self.server_time?.now(Instant::now());
        let own = self.clock.now();
        Some(Moment { server, own })
    }

    /// Returns when the owner's window closes, while somebody is in; other calls may change it. One that has closed
    /// meanwhile is due now: this is asked on each turn, and the turn before may have been for something else.
    pub(super) fn window_closes(&self) -> Option<Instant> {
        let live = self.tunnels.values().any(|live| live.end.is_some());
        let now = self.moment().filter(|_| live)?;
        Some(Instant::now() + self.options.config.policy.windows.closes_in(now)?)
    }

    /// Ends the tunnels whose time is over, by the server's clock or the device's own: their right's, or the owner's window.
    pub(super) fn end_overdue(&mut self) {
        let Some(now) = self.moment() else { return };
        self.end_tunnels(Code::TunnelExpired, |live| live.right.left(now).is_zero());
        if !self.options.config.policy.windows.are_open(now) {
            self.end_tunnels(Code::OutsideWindow, |_| true);
        }
    }
}

fn services(live: &Live) -> String {
    let services = live.right.grant.services.iter();
    services.map(ToString::to_string).collect::<Vec<_>>().join(",")
}

/// Writes the time of day.
fn clock_text(time: UnixTime) -> String {
    let secs = time.as_secs() % 86_400;
    format!(
        "until {:02}:{:02}:{:02} UTC",
        secs / 3600,
        secs / 60 % 60,
        secs % 60
    )
}
