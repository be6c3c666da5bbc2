//! The black box in the agent: what goes into it, and how it gets to the server.

use std::time::Instant;

use tunnel_net::clock::Clock as _;
use tunnel_proto::message::FromAgent;
use tunnel_proto::outage::{Cause, PER_MESSAGE};

use super::Agent;
use crate::link::End;

impl Agent {
    /// Notes that a link has ended, or did not come up.
    pub(super) fn note_end(&mut self, end: &End, was_linked: bool) {
        let now = self.clock.now();
        let mut causes = end.causes.iter().map(|(cause, detail)| (*cause, detail.as_str()));
        if was_linked {
            self.lost_at = Some(Instant::now());
            let (cause, detail) = causes.next_back().unwrap_or((Cause::Other, ""));
            self.black_box.handle_lost(now, fastrand::u64(..), cause, detail);
        } else if !std::mem::take(&mut self.said_goodbye) {
            // A server that said goodbye has told why already.
            self.lost_at.get_or_insert_with(Instant::now);
            self.black_box.handle_failed(now, fastrand::u64(..), causes);
        }
        self.save_black_box();
    }

    /// Notes that the server has sent this device away, and what it said.
    pub(super) fn note_goodbye(&mut self, words: &str) {
        self.said_goodbye = true;
        self.lost_at.get_or_insert_with(Instant::now);
        self.black_box
            .handle_lost(self.clock.now(), fastrand::u64(..), Cause::Server, words);
    }

    /// Notes that there is a link, and tells the server of the time without.
    pub(super) fn note_linked(&mut self) {
        let lasted = self.lost_at.take().map(|at| at.elapsed()).unwrap_or_default();
        self.black_box.handle_linked(self.clock.now(), lasted);
        for some in self.black_box.waiting().chunks(PER_MESSAGE) {
            self.outgoing.push(FromAgent::Outages(some.to_vec()));
        }
        self.save_black_box();
    }

    /// The server has outages for good.
    pub(super) fn handle_outages_kept(&mut self, ids: &[u64]) {
        self.black_box.handle_kept(ids);
        self.save_black_box();
    }

    fn save_black_box(&mut self) {
        let Some(bytes) = self.black_box.poll_write(self.clock.now()) else {
            return;
        };
        if let Err(error) = self.state.save_black_box(&bytes) {
            tracing::warn!(%error, "what was seen without a link could not be kept");
        }
    }
}
