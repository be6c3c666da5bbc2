//! `tunnel facts` and `tunnel group`: what policies decide by, apart from policies.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::Serialize;
use tunnel_proto::api::{ChangeFacts, Changed};
use tunnel_proto::names::{FactName, FactValue};
use tunnel_proto::{Code, DeviceId, OperatorName};

use super::{Context, time_text};
use crate::args;
use crate::failure::Failure;
use crate::output;
use crate::ssh;

/// A member of a group.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Member {
    /// A device.
    Device(DeviceId),
    /// An operator.
    Operator(OperatorName),
}

impl fmt::Display for Member {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Device(id) => write!(f, "device/{id}"),
            Self::Operator(name) => write!(f, "operator/{name}"),
        }
    }
}

impl FromStr for Member {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        match text.split_once('/') {
            Some(("device", id)) => id.parse().map(Self::Device).map_err(drop),
            Some(("operator", name)) => name.parse().map(Self::Operator).map_err(drop),
            _ => Err(()),
        }
    }
}

/// Runs one of the commands about groups.
///
/// # Errors
/// Tells what the server refuses.
pub async fn group(context: &Context, args: args::Group) -> Result<(), Failure> {
    match args {
        args::Group::Add(args) => change_group(context, args, true).await,
        args::Group::Remove(args) => change_group(context, args, false).await,
        args::Group::List { group } => {
            let (_, mut api) = context.api()?;
            let groups = api.groups().await;
            let mut groups = groups.map_err(|error| error.into_failure("could not list groups"))?;
            groups.retain(|member| group.as_ref().is_none_or(|group| member.group == group.as_str()));
            context.output.result(&groups, || {
                let rows = groups.iter().map(|one| [one.group.clone(), one.member.clone()]);
                output::table(["GROUP", "MEMBER"], &rows.collect::<Vec<_>>())
            })
        }
    }
}

async fn change_group(context: &Context, args: args::GroupMembers, add: bool) -> Result<(), Failure> {
    #[derive(Serialize)]
    struct Done {
        member: String,
        #[serde(flatten)]
        changed: Changed,
    }
    // All names are read before the first change is made.
    let members = args.members.iter().map(|text| member(text));
    let members: Vec<Member> = members.collect::<Result<_, _>>()?;
    let (_, mut api) = context.api()?;
    for member in members {
        let what = format!("could not change the groups of `{member}`");
        let changed = api.change_group(&args.group, &member, add).await;
        let changed = changed.map_err(|error| error.into_failure(what))?;
        let done = Done {
            member: member.to_string(),
            changed,
        };
        context.output.result(&done, || {
            let what = match (add, done.changed.changed) {
                (true, true) => "is now in",
                (true, false) => "was already in",
                (false, true) => "is no longer in",
                (false, false) => "was not in",
            };
            let cut = done.changed.tunnels_cut;
            format!("{member} {what} {}, {cut} tunnels cut\n", args.group)
        })?;
    }
    Ok(())
}

fn member(text: &str) -> Result<Member, Failure> {
    text.parse().map_err(|()| {
        let shown: String = text.chars().take(80).collect();
        Failure::new(Code::BadName, format!("`{shown}` is no device and no operator"))
            .next("write `device/ID` or `operator/NAME`")
    })
}

/// Runs one of the commands about facts.
///
/// # Errors
/// Tells what the server refuses.
pub async fn facts(context: &Context, args: args::Facts) -> Result<(), Failure> {
    match args {
        args::Facts::Set { device, facts } => {
            let set = facts.iter().map(|text| fact(text)).collect::<Result<_, _>>()?;
            let unset = Vec::new();
            change_facts(context, &device, ChangeFacts { set, unset }).await
        }
        args::Facts::Unset { device, facts } => {
            let unset = facts.iter().map(|text| name(text)).collect::<Result<_, _>>()?;
            let set = BTreeMap::new();
            change_facts(context, &device, ChangeFacts { set, unset }).await
        }
        args::Facts::List { device } => list(context, &device).await,
    }
}

async fn change_facts(context: &Context, device: &str, change: ChangeFacts) -> Result<(), Failure> {
    let device = ssh::device(device)?;
    let (_, mut api) = context.api()?;
    let what = format!("could not change the facts about `{device}`");
    let changed = api.change_facts(&device, &change).await;
    let changed = changed.map_err(|error| error.into_failure(what))?;
    context.output.result(&changed, || {
        let what = if changed.changed { "changed" } else { "unchanged" };
        format!("{what}, {} tunnels cut\n", changed.tunnels_cut)
    })
}

async fn list(context: &Context, device: &str) -> Result<(), Failure> {
    let device = ssh::device(device)?;
    let (_, mut api) = context.api()?;
    let what = format!("could not list the facts about `{device}`");
    let facts = api
        .facts(&device)
        .await
        .map_err(|error| error.into_failure(what))?;
    context.output.result(&facts, || {
        let asserted = facts.asserted.iter().map(|(name, fact)| {
            let by = format!("{}, {}", fact.by, time_text(fact.at));
            ["asserted".to_owned(), name.clone(), fact.value.clone(), by]
        });
        let at = facts.reported_at.map_or_else(|| "-".to_owned(), time_text);
        let reported = facts.reported.iter().map(|(name, value)| {
            let by = format!("the device, {at}");
            ["reported".to_owned(), name.clone(), value.clone(), by]
        });
        let groups = facts.reported_groups.iter().map(|group| {
            let by = "by what it reports".to_owned();
            ["reported".to_owned(), "group".to_owned(), group.clone(), by]
        });
        let rows: Vec<_> = asserted.chain(reported).chain(groups).collect();
        output::table(["KIND", "NAME", "VALUE", "SAID BY"], &rows)
    })
}

fn fact(text: &str) -> Result<(String, String), Failure> {
    let (key, value) = text.split_once('=').ok_or_else(|| {
        let shown: String = text.chars().take(80).collect();
        Failure::new(Code::BadRequest, format!("`{shown}` is no fact"))
            .why("a fact is set with its value")
            .next("write it as `site=north`")
    })?;
    let value: FactValue = value.parse().map_err(|error| bad(value, &error))?;
    Ok((name(key)?, value.to_string()))
}

fn name(text: &str) -> Result<String, Failure> {
    let name: FactName = text.parse().map_err(|error| bad(text, &error))?;
    Ok(name.to_string())
}

fn bad(text: &str, error: &tunnel_proto::names::NameError) -> Failure {
    let shown: String = text.chars().take(80).collect();
    Failure::new(Code::BadName, format!("`{shown}` cannot be used"))
        .why(error.to_string())
        .next("correct it")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_and_facts_are_read_strictly() {
        assert_eq!(member("device/pump-17").unwrap().to_string(), "device/pump-17");
        for bad in [
            "pump-17",
            "device/",
            "device/a/b",
            "server/n1",
            "operator/-x",
            "device/../x",
        ] {
            assert_eq!(member(bad).unwrap_err().code(), "E_BAD_NAME", "{bad}");
        }
        assert_eq!(fact("site=a=b").unwrap(), ("site".to_owned(), "a=b".to_owned()));
        for bad in ["site", "=x", "Site=x", "site=", "site=\u{1b}", "site= x"] {
            assert!(fact(bad).is_err(), "{bad}");
        }
    }
}
