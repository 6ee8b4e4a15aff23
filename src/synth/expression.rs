//! Integer expressions of spec files: named dimensions, `+ - * / %`, comparisons (1 or 0), `and`, `or`, parentheses.

use std::collections::BTreeMap;

/// Values of names.
pub type Dims = BTreeMap<String, i64>;

/// Why an expression has no value.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("`{text}`: {problem}")]
pub struct Error {
    text: String,
    problem: String,
}

/// The value of `text` with the names of `dims`.
pub fn evaluate(text: &str, dims: &Dims) -> Result<i64, Error> {
    let refuse = |problem: String| Error { text: text.to_string(), problem };
    let tokens = tokens(text).map_err(&refuse)?;
    let mut parser = Parser { tokens: &tokens, at: 0, dims };
    let value = parser.level(0).map_err(&refuse)?;
    match parser.tokens.get(parser.at) {
        None => Ok(value),
        Some(token) => Err(refuse(format!("`{token}` is not expected here"))),
    }
}

/// Binary operators, loosest first.
const LEVELS: &[&[&str]] = &[&["or"], &["and"], &["<", "<=", ">", ">=", "==", "!="], &["+", "-"], &["*", "/", "%"]];

fn tokens(text: &str) -> Result<Vec<&str>, String> {
    let mut found = Vec::new();
    let mut rest = text.trim_start();
    while let Some(first) = rest.chars().next() {
        let length = if first.is_ascii_alphanumeric() || first == '_' {
            rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(rest.len())
        } else if ["<=", ">=", "==", "!="].iter().any(|two| rest.starts_with(two)) {
            2
        } else if "+-*/%<>()".contains(first) {
            1
        } else {
            return Err(format!("`{first}` is not part of an expression"));
        };
        let (token, after) = rest.split_at(length);
        found.push(token);
        rest = after.trim_start();
    }
    Ok(found)
}

struct Parser<'a> {
    tokens: &'a [&'a str],
    at: usize,
    dims: &'a Dims,
}

impl Parser<'_> {
    fn level(&mut self, level: usize) -> Result<i64, String> {
        let Some(operators) = LEVELS.get(level) else { return self.operand() };
        let mut left = self.level(level + 1)?;
        while let Some(operator) = self.tokens.get(self.at).filter(|token| operators.contains(token)) {
            self.at += 1;
            let right = self.level(level + 1)?;
            left = apply(operator, left, right).ok_or_else(|| format!("{left} {operator} {right} has no value"))?;
        }
        Ok(left)
    }

    fn operand(&mut self) -> Result<i64, String> {
        let token = *self.tokens.get(self.at).ok_or("it ends too early")?;
        self.at += 1;
        if token == "(" {
            let value = self.level(0)?;
            if self.tokens.get(self.at) != Some(&")") {
                return Err("a `)` is missing".into());
            }
            self.at += 1;
            return Ok(value);
        }
        if let Ok(number) = token.parse() {
            return Ok(number);
        }
        self.dims.get(token).copied().ok_or_else(|| format!("`{token}` is no dimension of this spec"))
    }
}

fn apply(operator: &str, a: i64, b: i64) -> Option<i64> {
    match operator {
        "+" => a.checked_add(b),
        "-" => a.checked_sub(b),
        "*" => a.checked_mul(b),
        "/" => a.checked_div(b),
        "%" => a.checked_rem(b),
        "<" => Some((a < b).into()),
        "<=" => Some((a <= b).into()),
        ">" => Some((a > b).into()),
        ">=" => Some((a >= b).into()),
        "==" => Some((a == b).into()),
        "!=" => Some((a != b).into()),
        "and" => Some((a != 0 && b != 0).into()),
        "or" => Some((a != 0 || b != 0).into()),
        _ => unreachable!("every operator of LEVELS"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expressions_have_the_usual_precedence() {
        let dims = Dims::from([("n_head".to_string(), 32), ("n_embd".to_string(), 4096), ("i".to_string(), 3)]);
        for (text, value) in [
            ("7", 7),
            ("n_embd / n_head", 128),
            ("2 + 3 * (4 - 1)", 11),
            ("10 - 3 - 2", 5),
            ("i >= 3 and i % 4 == 3", 1),
            ("i < 3 or n_head == 31", 0),
        ] {
            assert_eq!(evaluate(text, &dims), Ok(value), "{text}");
        }
    }

    #[test]
    fn what_is_no_expression_says_why() {
        let dims = Dims::new();
        for (text, problem) in [
            ("n_ff", "`n_ff` is no dimension of this spec"),
            ("1 +", "it ends too early"),
            ("(1", "a `)` is missing"),
            ("1 / 0", "1 / 0 has no value"),
            ("1 2", "`2` is not expected here"),
            ("1 & 2", "`&` is not part of an expression"),
        ] {
            assert_eq!(evaluate(text, &dims).unwrap_err().problem, problem);
        }
    }
}
