//! Integer expressions of rule files: names, `name[index]`, `f(words)`, `+ - * / % & |`, comparisons (1 or 0), `and`, `or`,
//! `not`, `c ? a : b`, `max(a, b)`, parentheses.

use std::collections::BTreeMap;

/// Values of names.
pub type Dims = BTreeMap<String, i64>;

/// What an expression's names stand for.
pub trait Values {
    /// The value of a name.
    fn name(&self, name: &str) -> Option<i64>;
    /// The value of `name[index]`.
    fn at(&self, _name: &str, _index: i64) -> Option<i64> {
        None
    }
    /// The answer to `question(words)`: the words are no expression.
    fn ask(&self, _question: &str, _words: &str) -> Option<i64> {
        None
    }
}

impl Values for Dims {
    fn name(&self, name: &str) -> Option<i64> {
        self.get(name).copied()
    }
}

/// Why an expression has no value.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("`{text}`: {problem}")]
pub struct Error {
    text: String,
    problem: String,
}

/// The value of `text` with the names of `dims`.
pub fn evaluate(text: &str, dims: &Dims) -> Result<i64, Error> {
    Expr::parse(text)?.value(dims).map_err(|problem| Error { text: text.to_string(), problem })
}

/// A parsed expression.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Expr {
    Number(i64),
    Name(String),
    /// `name[index]`.
    At(String, Box<Self>),
    /// `question(words)`.
    Ask(String, String),
    /// `max(a, b)`.
    Max(Box<Self>, Box<Self>),
    /// `not a`.
    Not(Box<Self>),
    /// `condition ? a : b`.
    Either(Box<Self>, Box<Self>, Box<Self>),
    /// `a operator b`.
    Both(&'static str, Box<Self>, Box<Self>),
}

/// Binary operators, loosest first.
const LEVELS: &[&[&str]] =
    &[&["or"], &["and"], &["|"], &["&"], &["<=", "<", ">=", ">", "==", "!="], &["+", "-"], &["*", "/", "%"]];

impl Expr {
    /// The expression that `text` is.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let refuse = |problem: String| Error { text: text.to_string(), problem };
        let mut parser = Parser { rest: text.trim() };
        let expr = parser.either().map_err(&refuse)?;
        if parser.rest.is_empty() {
            return Ok(expr);
        }
        let token = parser.token().map_err(&refuse)?;
        Err(refuse(format!("`{token}` is not expected here")))
    }

    /// Its value, or why it has none. What a condition does not choose is not computed.
    pub fn value(&self, values: &impl Values) -> Result<i64, String> {
        let unknown = |name: &str| format!("`{name}` has no value here");
        match self {
            Self::Number(number) => Ok(*number),
            Self::Name(name) => values.name(name).ok_or_else(|| unknown(name)),
            Self::At(name, index) => {
                let index = index.value(values)?;
                values.at(name, index).ok_or_else(|| unknown(&format!("{name}[{index}]")))
            }
            Self::Ask(question, words) => {
                values.ask(question, words).ok_or_else(|| unknown(&format!("{question}({words})")))
            }
            Self::Max(a, b) => Ok(a.value(values)?.max(b.value(values)?)),
            Self::Not(a) => Ok((a.value(values)? == 0).into()),
            Self::Either(condition, a, b) => {
                if condition.value(values)? != 0 {
                    a.value(values)
                } else {
                    b.value(values)
                }
            }
            Self::Both("and", a, b) => Ok((a.value(values)? != 0 && b.value(values)? != 0).into()),
            Self::Both("or", a, b) => Ok((a.value(values)? != 0 || b.value(values)? != 0).into()),
            Self::Both(operator, a, b) => {
                let (a, b) = (a.value(values)?, b.value(values)?);
                apply(operator, a, b).ok_or_else(|| format!("{a} {operator} {b} has no value"))
            }
        }
    }

    /// The names in it, `name[index]` among them, each once, in order.
    pub fn names(&self) -> Vec<&Self> {
        let mut found = Vec::new();
        self.collect(&mut found);
        found
    }

    fn collect<'a>(&'a self, found: &mut Vec<&'a Self>) {
        match self {
            Self::Number(_) | Self::Ask(..) => {}
            Self::Name(_) | Self::At(..) => {
                if !found.contains(&self) {
                    found.push(self);
                }
            }
            Self::Not(a) => a.collect(found),
            Self::Max(a, b) | Self::Both(_, a, b) => {
                a.collect(found);
                b.collect(found);
            }
            Self::Either(condition, a, b) => {
                condition.collect(found);
                a.collect(found);
                b.collect(found);
            }
        }
    }
}

struct Parser<'a> {
    rest: &'a str,
}

impl<'a> Parser<'a> {
    /// Takes the next token.
    fn token(&mut self) -> Result<&'a str, String> {
        let first = self.rest.chars().next().ok_or("it ends too early")?;
        let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
        let length = if is_word(first) {
            self.rest.find(|c: char| !is_word(c)).unwrap_or(self.rest.len())
        } else if ["<=", ">=", "==", "!="].iter().any(|two| self.rest.starts_with(two)) {
            2
        } else if "+-*/%<>()[]?:|&,".contains(first) {
            1
        } else {
            return Err(format!("`{first}` is not part of an expression"));
        };
        let (token, after) = self.rest.split_at(length);
        self.rest = after.trim_start();
        Ok(token)
    }

    /// Takes the next token if it is this one.
    fn take(&mut self, wanted: &str) -> bool {
        let before = self.rest;
        if self.token() == Ok(wanted) {
            return true;
        }
        self.rest = before;
        false
    }

    fn expect(&mut self, wanted: &str) -> Result<(), String> {
        if self.take(wanted) { Ok(()) } else { Err(format!("a `{wanted}` is missing")) }
    }

    fn either(&mut self) -> Result<Expr, String> {
        let condition = self.level(0)?;
        if !self.take("?") {
            return Ok(condition);
        }
        let a = self.either()?;
        self.expect(":")?;
        Ok(Expr::Either(condition.into(), a.into(), self.either()?.into()))
    }

    fn level(&mut self, level: usize) -> Result<Expr, String> {
        let Some(operators) = LEVELS.get(level) else { return self.operand() };
        let mut left = self.level(level + 1)?;
        while let Some(operator) = operators.iter().find(|operator| self.take(operator)) {
            left = Expr::Both(operator, left.into(), self.level(level + 1)?.into());
        }
        Ok(left)
    }

    fn operand(&mut self) -> Result<Expr, String> {
        let token = self.token()?;
        match token {
            "(" => {
                let inner = self.either()?;
                self.expect(")")?;
                return Ok(inner);
            }
            "not" => return Ok(Expr::Not(self.level(LEVELS.len() - 3)?.into())),
            "-" => return Ok(Expr::Both("-", Expr::Number(0).into(), self.operand()?.into())),
            _ => {}
        }
        if let Ok(number) = token.parse() {
            return Ok(Expr::Number(number));
        }
        if !token.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_') {
            return Err(format!("`{token}` is not expected here"));
        }
        if token == "max" {
            self.expect("(")?;
            let a = self.either()?;
            self.expect(",")?;
            let b = self.either()?;
            self.expect(")")?;
            return Ok(Expr::Max(a.into(), b.into()));
        }
        if self.take("(") {
            let (words, after) = self.rest.split_once(')').ok_or("a `)` is missing")?;
            self.rest = after.trim_start();
            return Ok(Expr::Ask(token.to_string(), words.to_string()));
        }
        if self.take("[") {
            let index = self.either()?;
            self.expect("]")?;
            return Ok(Expr::At(token.to_string(), index.into()));
        }
        Ok(Expr::Name(token.to_string()))
    }
}

fn apply(operator: &str, a: i64, b: i64) -> Option<i64> {
    match operator {
        "+" => a.checked_add(b),
        "-" => a.checked_sub(b),
        "*" => a.checked_mul(b),
        "/" => a.checked_div(b),
        "%" => a.checked_rem(b),
        "|" => Some(a | b),
        "&" => Some(a & b),
        "<" => Some((a < b).into()),
        "<=" => Some((a <= b).into()),
        ">" => Some((a > b).into()),
        ">=" => Some((a >= b).into()),
        "==" => Some((a == b).into()),
        "!=" => Some((a != b).into()),
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
            ("-1", -1),
            ("n_embd / n_head", 128),
            ("2 + 3 * (4 - 1)", 11),
            ("10 - 3 - 2", 5),
            ("i >= 3 and i % 4 == 3", 1),
            ("i < 3 or n_head == 31", 0),
            ("not i == 3 or not (i > 3)", 1),
            ("i == 3 ? 1 | 4 : 1 / 0", 5),
            ("6 & 3 | 8", 10),
            ("max(i, n_head) * 2", 64),
            ("i == 4 and 1 / 0", 0),
        ] {
            assert_eq!(evaluate(text, &dims), Ok(value), "{text}");
        }
    }

    #[test]
    fn what_is_no_expression_says_why() {
        let dims = Dims::new();
        for (text, problem) in [
            ("n_ff", "`n_ff` has no value here"),
            ("1 +", "it ends too early"),
            ("(1", "a `)` is missing"),
            ("1 / 0", "1 / 0 has no value"),
            ("1 2", "`2` is not expected here"),
            ("1 # 2", "`#` is not part of an expression"),
        ] {
            assert_eq!(evaluate(text, &dims).unwrap_err().problem, problem);
        }
    }
}
