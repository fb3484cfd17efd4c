//! Which rules may be judged by overlapping pieces of a file that is too long for memory.
//!
//! A rule may if it asks for nothing but that one of some short patterns is there: `$a`, `any of them`, and `or` between
//! such. What needs two patterns, an offset, a count, a negation, the file's length, a module or another rule may turn
//! false, or true, by how the file was cut.

use yara_x_parser::ast::{
    AST, Expr, HexSubPattern, HexToken, Item, OfItems, Pattern, PatternModifier, Quantifier, Rule, RuleFlags,
};

/// Pieces overlap by so much, and no pattern that is judged by pieces is longer.
pub(super) const OVERLAP_BYTES: u64 = 4096;
/// `wide` doubles a pattern and `base64wide` makes 8 bytes of 3.
const ENCODED_GROWTH: u64 = 3;

/// What a rule file has that may be judged by pieces.
pub(super) struct ByPieces {
    pub rules: Vec<String>,
    /// Whether a global rule is in it.
    pub any_global: bool,
}

pub(super) fn rules_by_pieces(source: &str) -> ByPieces {
    let ast = AST::from(source);
    let includes = ast.items().any(|item| matches!(item, Item::Include(_)));
    // What an included file brings is not known here.
    let any_global = includes || ast.rules().any(|rule| rule.flags.contains(RuleFlags::Global));
    let rules = ast.rules().filter(|rule| fits(rule)).map(|rule| rule.identifier.name.to_owned()).collect();
    ByPieces { rules, any_global }
}

fn fits(rule: &Rule<'_>) -> bool {
    let patterns = rule.patterns.as_deref().unwrap_or_default();
    !patterns.is_empty() && patterns.iter().all(is_short) && asks_for_one(&rule.condition)
}

fn asks_for_one(condition: &Expr<'_>) -> bool {
    match condition {
        Expr::PatternMatch(pattern) => pattern.anchor.is_none(),
        Expr::Or(or) => or.operands.iter().all(asks_for_one),
        Expr::Of(of) => {
            let any = match &of.quantifier {
                Quantifier::Any { .. } => true,
                Quantifier::Expr(Expr::LiteralInteger(number)) => number.value == 1,
                _ => false,
            };
            any && of.anchor.is_none() && matches!(of.items, OfItems::PatternSet(_))
        }
        _ => false,
    }
}

fn is_short(pattern: &Pattern<'_>) -> bool {
    let length = match pattern {
        // Whether a word ends where a piece does can't be told.
        Pattern::Text(text) if text.modifiers.iter().any(|one| matches!(one, PatternModifier::Fullword { .. })) => None,
        Pattern::Text(text) => (text.text.value.len() as u64).checked_mul(ENCODED_GROWTH),
        Pattern::Hex(hex) => hex_length(&hex.sub_patterns),
        Pattern::Regexp(_) => None,
    };
    length.is_some_and(|length| length <= OVERLAP_BYTES)
}

/// The longest match of a hexadecimal pattern; none if there is no such length.
fn hex_length(pattern: &HexSubPattern) -> Option<u64> {
    pattern.iter().try_fold(0_u64, |length, token| {
        let more = match token {
            HexToken::Byte(_) | HexToken::NotByte(_) => 1,
            HexToken::Jump(jump) => u64::from(jump.end?),
            HexToken::Alternative(either) => {
                let lengths: Option<Vec<u64>> = either.alternatives.iter().map(hex_length).collect();
                lengths?.into_iter().max().unwrap_or_default()
            }
        };
        length.checked_add(more)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fits(rule: &str) -> bool {
        let judged = rules_by_pieces(rule);
        !judged.any_global && judged.rules == ["r"]
    }

    #[test]
    fn only_rules_that_ask_for_one_short_pattern_are_judged_by_pieces() {
        for condition in ["$a", "any of them", "1 of ($a, $b)", "$a or $b", "$a or any of ($b*)"] {
            assert!(
                fits(&format!(
                    r#"rule r {{ strings: $a = "abc" wide $b = {{ 01 [2-9] ?? (02|03 04) }} condition: {condition} }}"#
                )),
                "{condition}"
            );
        }
        for condition in [
            "$a and $b",
            "all of them",
            "2 of them",
            "$a at 0",
            "#a > 2",
            "not $a",
            "$a and filesize < 10",
            "none of them",
            "any of them in (0..10)",
            "for any of them : ($)",
            "50% of them",
            "@a < 3",
        ] {
            assert!(
                !fits(&format!(r#"rule r {{ strings: $a = "abc" $b = "def" condition: {condition} }}"#)),
                "{condition}"
            );
        }
        for pattern in ["/abc/", "{ 01 [-] 02 }", "{ 01 [0-5000] 02 }", "\"abc\" fullword"] {
            assert!(!fits(&format!("rule r {{ strings: $a = {pattern} condition: $a }}")), "{pattern}");
        }
        assert!(!fits("rule r { condition: true }"));
        assert!(!fits(r#"include "x.yar" rule r { strings: $a = "abc" condition: $a }"#));
        assert!(!fits(r#"global rule g { condition: true } rule r { strings: $a = "abc" condition: $a }"#));
    }
}
