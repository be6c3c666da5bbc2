//! The policies of the crowd: one that allows everything, and as many as a large fleet has.

use std::fmt::Write as _;

use super::OPERATORS;

/// Allows everything.
pub const ALLOW_ALL: &str = "@id(\"everything\") permit (principal, action, resource);\n";

/// Rules of groups, of single operators and devices, with conditions and exceptions. They allow the crowd its tunnels.
pub fn many(count: usize) -> String {
    let mut text = String::from(
        "@id(\"admins\") permit (principal in OperatorGroup::\"admins\", action, resource);\n\
         @id(\"view\") permit (principal, action == Action::\"view\", resource);\n\
         @id(\"crowd\") @max_lifetime(\"1h\") permit (principal in OperatorGroup::\"technicians\", action == Action::\"connect\", \
         resource in DeviceGroup::\"g0\") when { context has reason && context.reason like \"INC-*\" };\n",
    );
    for number in 3..count {
        let (operator, group) = (number % OPERATORS, number % 100);
        let rule = match number % 4 {
            0 => format!(
                "permit (principal in OperatorGroup::\"g{group}\", action == Action::\"connect\", \
                 resource in DeviceGroup::\"g{group}\") when {{ resource.name == \"ssh\" }}"
            ),
            1 => format!(
                "permit (principal == Operator::\"o{operator}\", action == Action::\"connect\", \
                 resource in DeviceGroup::\"g{}\") when {{ context.certificate_age_secs < 43200 }}",
                group + 1
            ),
            2 => format!(
                "permit (principal in OperatorGroup::\"g{group}\", action == Action::\"connect\", \
                 resource in Device::\"d{number}\") when {{ context.source.isInRange(ip(\"10.0.0.0/8\")) }}"
            ),
            _ => format!(
                "forbid (principal, action == Action::\"connect\", resource) when {{ \
                 resource.device.asserted.hasTag(\"site\") && \
                 resource.device.asserted.getTag(\"site\").value == \"s{number}\" }}"
            ),
        };
        let _ = writeln!(text, "@id(\"p{number}\") {rule};");
    }
    text
}
