//! What differs between two policy sets, policy by policy: a text that was only moved or laid out anew is the same.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::check::PolicyErrors;
use crate::engine::Engine;

/// What differs, by the names of the policies.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize)]
pub struct Difference {
    /// Those that only the second has, with their texts.
    pub added: BTreeMap<String, String>,
    /// Those that only the first has.
    pub removed: BTreeMap<String, String>,
    /// Those that both have with other contents: the text of the first, and that of the second.
    pub changed: BTreeMap<String, (String, String)>,
}

impl Difference {
    /// Says whether both sets are the same.
    pub fn is_empty(&self) -> bool {
        self.added.is_empty() && self.removed.is_empty() && self.changed.is_empty()
    }
}

/// Compares two policy sets.
///
/// # Errors
/// Returns what is wrong with the first text that is not good.
pub fn diff(from: &str, to: &str) -> Result<Difference, PolicyErrors> {
    let (mut before, mut after) = (texts(from)?, texts(to)?);
    let mut found = Difference::default();
    for (name, (contents, text)) in std::mem::take(&mut before) {
        match after.remove(&name) {
            None => drop(found.removed.insert(name, text)),
            Some((now, _)) if now == contents => {}
            Some((_, now)) => drop(found.changed.insert(name, (text, now))),
        }
    }
    found.added = after.into_iter().map(|(name, (_, text))| (name, text)).collect();
    Ok(found)
}

/// Returns what each policy says, in a form without lay-out, and its text.
fn texts(text: &str) -> Result<BTreeMap<String, (String, String)>, PolicyErrors> {
    let engine = Engine::new(text)?;
    let all = engine.policies().map(|(name, policy)| {
        let text = policy.to_string().trim().to_owned();
        let contents = policy
            .to_json()
            .map_or_else(|_| text.clone(), |json| json.to_string());
        (name.to_owned(), (contents, text))
    });
    Ok(all.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policies_are_compared_by_what_they_say() {
        let one = r#"@id("a") permit (principal, action, resource); @id("b") forbid (principal, action, resource);"#;
        let same = "// moved\n@id(\"b\")\nforbid (principal,action,resource);\n@id(\"a\") permit(principal, action, resource);";
        assert!(diff(one, same).unwrap().is_empty());
        let other = r#"@id("b") permit (principal, action, resource); @id("c") permit (principal, action, resource);"#;
        let found = diff(one, other).unwrap();
        assert_eq!(found.added.keys().collect::<Vec<_>>(), ["c"]);
        assert_eq!(found.removed.keys().collect::<Vec<_>>(), ["a"]);
        assert_eq!(found.changed.keys().collect::<Vec<_>>(), ["b"]);
        assert!(diff(one, "permit").is_err());
        let limit = r#"@id("a") @max_bytes("1B") permit (principal, action == Action::"connect", resource);"#;
        assert!(!diff(limit, &limit.replace("1B", "2B")).unwrap().is_empty());
    }
}
