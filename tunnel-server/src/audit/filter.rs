//! Which records somebody wants to see. Pure.

use serde_json::Value;
use tunnel_proto::{DeviceId, OperatorName, TunnelId};

/// What a record has to be about. What is not said is not asked for.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub(crate) struct Filter {
    /// A kind, as `tunnel.opened`, or all that begin with a word, as `tunnel`.
    pub(crate) kind: Option<String>,
    /// Who did it, or whom it befell.
    pub(crate) operator: Option<OperatorName>,
    /// Which device it is about.
    pub(crate) device: Option<DeviceId>,
    /// Which tunnel it is about.
    pub(crate) tunnel: Option<TunnelId>,
    /// Not before this time, in milliseconds since 1970.
    pub(crate) since: Option<u64>,
    /// Before this time, in milliseconds since 1970.
    pub(crate) until: Option<u64>,
}

/// Fields that hold one name, of the kind that the record says.
const NAMES: [&str; 2] = ["member", "wanted"];
/// Fields that hold an identity, as `operator/ana` or as a SPIFFE id that ends with it.
const IDENTITIES: [&str; 4] = ["by", "identity", "presented_by", "target"];

impl Filter {
    /// Says whether a record fits. One that cannot be read is about nobody.
    pub(crate) fn fits(&self, time_millis: u64, kind: &str, body: &str) -> bool {
        self.since.is_none_or(|since| time_millis >= since)
            && self.until.is_none_or(|until| time_millis < until)
            && self.kind.as_deref().is_none_or(|wanted| is_kind(kind, wanted))
            && self.fits_body(body)
    }

    fn fits_body(&self, body: &str) -> bool {
        let tunnel = self.tunnel.map(|tunnel| tunnel.to_string());
        let named = [
            ("operator", self.operator.as_ref().map(OperatorName::as_str)),
            ("device", self.device.as_ref().map(DeviceId::as_str)),
            ("tunnel", tunnel.as_deref()),
        ];
        let mut wanted = named.iter().filter_map(|(field, name)| Some((*field, (*name)?)));
        // Most records are about others: that shows without reading them.
        if !wanted.clone().all(|(_, name)| body.contains(name)) {
            return false;
        }
        if wanted.clone().next().is_none() {
            return true;
        }
        serde_json::from_str(body).is_ok_and(|body| wanted.all(|(field, name)| is_about(&body, field, name)))
    }
}

/// Says whether a kind is the wanted one, or one of the wanted group.
fn is_kind(kind: &str, wanted: &str) -> bool {
    let rest = kind.strip_prefix(wanted);
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}

/// Says whether a record speaks of somebody: in the field of that name, as a member of that kind, or as an identity.
fn is_about(body: &Value, field: &str, name: &str) -> bool {
    let text = |field: &str| body.get(field).and_then(Value::as_str);
    if text(field) == Some(name) {
        return true;
    }
    // Who approves is named as an operator is; and what is asked for may be several devices.
    if field == "operator" && text("by") == Some(name) {
        return true;
    }
    let devices = body.get("devices").and_then(Value::as_array);
    if field == "device" && devices.is_some_and(|devices| devices.iter().any(|device| device == name)) {
        return true;
    }
    let ids = body.get("ids").and_then(Value::as_array);
    let listed = || ids.is_some_and(|ids| ids.iter().any(|id| id.as_str() == Some(name)));
    let is_member = || NAMES.iter().any(|named| text(named) == Some(name)) || listed();
    if text("makes") == Some(field) && is_member() {
        return true;
    }
    let identity = format!("{field}/{name}");
    let is_identity = |text: &str| {
        let before = text.strip_suffix(&identity);
        before.is_some_and(|before| before.is_empty() || before.ends_with('/'))
    };
    IDENTITIES.iter().filter_map(|field| text(field)).any(is_identity)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_found_by_who_is_in_it_and_by_nobody_else() {
        let operator = |name: &str| Filter {
            operator: Some(name.parse().unwrap()),
            ..Filter::default()
        };
        let pump = Filter {
            device: Some("pump-17".parse().unwrap()),
            ..Filter::default()
        };
        for (body, ana, device) in [
            (r#"{"operator":"ana","device":"pump-17"}"#, true, true),
            (r#"{"by":"operator/ana","target":"device/pump-17"}"#, true, true),
            (r#"{"presented_by":"spiffe://f/operator/ana"}"#, true, false),
            (r#"{"identity":"spiffe://f/device/pump-17"}"#, false, true),
            (r#"{"by":"ana","devices":["pump-17"]}"#, true, true),
            (r#"{"makes":"operator","member":"ana"}"#, true, false),
            (r#"{"makes":"device","ids":["pump-16","pump-17"]}"#, false, true),
            (r#"{"makes":"device","member":"ana"}"#, false, false),
            (r#"{"by":"operator/mariana","device":"pump-170"}"#, false, false),
            (
                r#"{"reason":"ana, operator/ana","service":"pump-17"}"#,
                false,
                false,
            ),
            ("no JSON: ana pump-17", false, false),
        ] {
            assert_eq!(operator("ana").fits(0, "x", body), ana, "{body}");
            assert_eq!(pump.fits(0, "x", body), device, "{body}");
            assert!(Filter::default().fits(0, "x", body));
        }
        let both = Filter {
            device: pump.device,
            ..operator("ana")
        };
        assert!(both.fits(0, "x", r#"{"operator":"ana","device":"pump-17"}"#));
        assert!(!both.fits(0, "x", r#"{"operator":"eve","device":"pump-17"}"#));
    }

    #[test]
    fn kinds_and_times_have_ends() {
        let tunnels = Filter {
            kind: Some("tunnel".into()),
            since: Some(10),
            until: Some(20),
            ..Filter::default()
        };
        assert!(tunnels.fits(10, "tunnel.opened", "{}"));
        assert!(tunnels.fits(19, "tunnel", "{}"));
        let bad = [
            (9, "tunnel.opened"),
            (20, "tunnel.opened"),
            (15, "tunnels.x"),
            (15, "session.ended"),
        ];
        for (time, kind) in bad {
            assert!(!tunnels.fits(time, kind, "{}"), "{time} {kind}");
        }
    }
}
