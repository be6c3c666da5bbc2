//! Whether the server answers, over each carrier, and whether its clock and ours agree.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tunnel_net::clock::{Clock as _, FloorClock, SystemClock};
use tunnel_net::link::Try;
use tunnel_net::tls::{self, Ends};
use tunnel_net::{quic, websocket};
use tunnel_proto::UnixTime;
use tunnel_proto::carrier::Carrier;
use tunnel_proto::code::Code;
use tunnel_proto::defaults::{CARRIER_PATH, CARRIER_PROTOCOL, CONNECT_DEADLINE};

use super::report::{Report, Status};
use super::words;
use crate::defaults::SKEW_WARNING;
use crate::enrol::http_failure;
use crate::failure::Failure;
use crate::http::{self, Answer};
use crate::link::code_of;
use crate::state::Enrolled;

/// Checks both carriers. One of them is enough to work.
pub(super) async fn check(report: &mut Report, enrolled: &Enrolled, clock: Arc<FloorClock>) {
    let ends = Ends::new(Arc::clone(&enrolled.trust), clock);
    let (udp, websocket) = tokio::join!(over_udp(enrolled, &ends), over_websocket(enrolled, &ends));
    let date = websocket.as_ref().ok().and_then(|answer| answer.date);
    let works = udp.is_ok() || websocket.is_ok();
    let server = &enrolled.server;
    match udp {
        Ok(rtt) => report.ok(
            "server over udp",
            format!(
                "`{}` port {} answers in {} ms",
                server.host,
                server.udp_port,
                rtt.as_millis()
            ),
        ),
        Err(failure) => fall_back(report, "server over udp", &failure, works),
    }
    match websocket {
        Ok(_) => report.ok("server over websocket", format!("`{server}` answers")),
        Err(failure) => fall_back(report, "server over websocket", &failure, works),
    }
    if let Some(date) = date {
        check_skew(report, date, SystemClock.now());
    }
}

/// A carrier that does not work is a warning as long as the other one does.
fn fall_back(report: &mut Report, name: &str, failure: &Failure, works: bool) {
    report.failed(name, failure);
    if let Some(finding) = report.findings.last_mut().filter(|_| works) {
        finding.status = Status::Warning;
        finding.mend =
            Some("the other carrier works; open this one in the firewall for speed and safety".into());
    }
}

/// Makes a handshake as the control link does, and says nothing on it: a running agent keeps its link.
async fn over_udp(enrolled: &Enrolled, ends: &Ends) -> Result<Duration, Failure> {
    let mut config =
        quinn::ClientConfig::new(tls::quic_client(tls::link_client(ends, &enrolled.credentials)));
    config.transport_config(quic::link_transport());
    let unused = Arc::new(tls::api_client(ends, None));
    let started = Instant::now();
    let linked = tunnel_net::link::connect(&enrolled.server, config, unused, Try::Only(Carrier::Udp)).await;
    let took = started.elapsed();
    let link = linked
        .map_err(|error| Failure::of(code_of(&error), "could not reach the server").because(&error.udp))?;
    link.connection.close(0u32.into(), b"check");
    let _ = tokio::time::timeout(CONNECT_DEADLINE, link.endpoint.wait_idle()).await;
    Ok(took)
}

/// Opens the WebSocket carrier, and leaves it at that.
async fn over_websocket(enrolled: &Enrolled, ends: &Ends) -> Result<Answer, Failure> {
    let server = &enrolled.server;
    let failed = |failure: Failure| Failure {
        what: "could not reach the server".into(),
        ..failure
    };
    let tls = Arc::new(tls::api_client(ends, None));
    let exchange = async {
        let mut stream = websocket::connect_tls(server, tls).await?;
        http::exchange(
            &mut stream,
            &http::upgrade(server, CARRIER_PATH, CARRIER_PROTOCOL),
        )
        .await
    };
    let answer = tokio::time::timeout(2 * CONNECT_DEADLINE, exchange)
        .await
        .map_err(|_| failed(Failure::of(Code::ServerUnreachable, "")))?
        .map_err(|error| failed(http_failure(&error, server)))?;
    if answer.status == 101 {
        Ok(answer)
    } else {
        let why = format!("it answered the carrier's request with status {}", answer.status);
        Err(failed(Failure::of(Code::Protocol, "").because(why)))
    }
}

fn check_skew(report: &mut Report, server: UnixTime, own: UnixTime) {
    let (ahead, behind) = (own.since(server), server.since(own));
    let (skew, way) = if ahead > behind {
        (ahead, "ahead of")
    } else {
        (behind, "behind")
    };
    if skew > SKEW_WARNING {
        let text = format!("is {} {way} the server's", words(skew));
        report.warning("clock", text, "set the clock, as by `timedatectl set-ntp true`");
    } else {
        report.ok("clock", "agrees with the server's");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_skew_is_told_with_its_way() {
        let at = UnixTime::from_secs;
        for (own, text) in [
            (1000, "agrees"),
            (1060, "agrees"),
            (1061, "61 s ahead of"),
            (100, "15 min behind"),
        ] {
            let mut report = Report::default();
            check_skew(&mut report, at(1000), at(own));
            assert!(
                report.findings[0].text.contains(text),
                "{own}: {}",
                report.findings[0].text
            );
        }
    }

    #[test]
    fn one_carrier_that_works_is_enough() {
        let failure = Failure::of(Code::ServerUnreachable, "no answer");
        let mut report = Report::default();
        fall_back(&mut report, "udp", &failure, true);
        assert_eq!(report.exit() as u8, 0);
        fall_back(&mut report, "websocket", &failure, false);
        assert_eq!(report.exit() as u8, 4);
    }
}
