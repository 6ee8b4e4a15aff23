//! Integer expressions of rule files: names, `name[index]`, `f(words)`, `+ - * / % & |`, comparisons (1 or 0), `and`, `or`,
//! `not`, `c ? a : b`, `max(a, b)`, parentheses.

use std::collections::BTreeMap;

/// Values of names.
pub type Dims = BTreeMap<String, i64>;

/// What an expression asks of its surroundings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Term<'a> {
    Name(&'a str),
    /// `name[index]`.
    At(&'a str, i64),
    /// `question(words)`: the words are not an expression.
    Ask(&'a str, &'a str),
}

/// The value of `text` with the names of `dims`, where `name[index]` is a name too.
pub fn evaluate(text: &str, dims: &Dims) -> Result<i64, String> {
    let known = |term: Term<'_>| match term {
        Term::Name(name) => dims.get(name).copied(),
        Term::At(name, index) => dims.get(&format!("{name}[{index}]")).copied(),
        Term::Ask(..) => None,
    };
    Expr::parse(text)?.value(&known).map_err(|problem| format!("`{text}`: {problem}"))
}

/// A parsed expression.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Expr {
    Number(i64),
    Name(String),
    At(String, Box<Self>),
    Ask(String, String),
    /// An operator or function (`max`, `not`, `?`) and its operands.
    Apply(&'static str, Vec<Self>),
}

/// Binary operators, loosest first.
const LEVELS: &[&[&str]] =
    &[&["or"], &["and"], &["|"], &["&"], &["<=", "<", ">=", ">", "==", "!="], &["+", "-"], &["*", "/", "%"]];
/// What `not` applies to: comparisons and what binds closer.
const NEGATED: usize = 4;

impl Expr {
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut parser = Parser(text.trim());
        let parsed = parser.either().and_then(|expr| match parser.0 {
            "" => Ok(expr),
            _ => Err(format!("`{}` is not expected here", parser.token()?)),
        });
        parsed.map_err(|problem| format!("`{text}`: {problem}"))
    }

    /// Its value, or why it has none. What a condition does not choose is not computed.
    pub fn value(&self, known: &dyn Fn(Term<'_>) -> Option<i64>) -> Result<i64, String> {
        let ask = |term: Term<'_>, text: &str| known(term).ok_or_else(|| format!("`{text}` has no value here"));
        let (operator, operands) = match self {
            Self::Number(number) => return Ok(*number),
            Self::Name(name) => return ask(Term::Name(name), name),
            Self::At(name, index) => {
                let index = index.value(known)?;
                return ask(Term::At(name, index), &format!("{name}[{index}]"));
            }
            Self::Ask(question, words) => return ask(Term::Ask(question, words), &format!("{question}({words})")),
            Self::Apply(operator, operands) => (*operator, operands.as_slice()),
        };
        let is = |operand: &Self| Ok::<bool, String>(operand.value(known)? != 0);
        match (operator, operands) {
            ("not", [a]) => Ok((!is(a)?).into()),
            ("?", [condition, a, b]) => if is(condition)? { a } else { b }.value(known),
            ("and", [a, b]) => Ok((is(a)? && is(b)?).into()),
            ("or", [a, b]) => Ok((is(a)? || is(b)?).into()),
            (_, [a, b]) => {
                let (a, b) = (a.value(known)?, b.value(known)?);
                apply(operator, a, b).ok_or_else(|| format!("{a} {operator} {b} has no value"))
            }
            _ => unreachable!("the parser gives every operator its operands"),
        }
    }

    /// The names in it, `name[index]` among them, each once, in order.
    pub fn names(&self) -> Vec<&Self> {
        match self {
            Self::Number(_) | Self::Ask(..) => Vec::new(),
            Self::Name(_) | Self::At(..) => vec![self],
            Self::Apply(_, operands) => {
                let mut found: Vec<&Self> = Vec::new();
                for name in operands.iter().flat_map(Self::names) {
                    if !found.contains(&name) {
                        found.push(name);
                    }
                }
                found
            }
        }
    }
}

/// The rest of a text.
struct Parser<'a>(&'a str);

impl<'a> Parser<'a> {
    fn token(&mut self) -> Result<&'a str, String> {
        let first = self.0.chars().next().ok_or("it ends too early")?;
        let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
        let length = if is_word(first) {
            self.0.find(|c: char| !is_word(c)).unwrap_or(self.0.len())
        } else if ["<=", ">=", "==", "!="].iter().any(|two| self.0.starts_with(two)) {
            2
        } else if "+-*/%<>()[]?:|&,".contains(first) {
            1
        } else {
            return Err(format!("`{first}` is not part of an expression"));
        };
        let (token, after) = self.0.split_at(length);
        self.0 = after.trim_start();
        Ok(token)
    }

    /// Takes the next token if it is this one.
    fn take(&mut self, wanted: &str) -> bool {
        let before = self.0;
        let is_it = self.token() == Ok(wanted);
        if !is_it {
            self.0 = before;
        }
        is_it
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
        Ok(Expr::Apply("?", vec![condition, a, self.either()?]))
    }

    fn level(&mut self, level: usize) -> Result<Expr, String> {
        let Some(operators) = LEVELS.get(level) else { return self.operand() };
        let mut left = self.level(level + 1)?;
        while let Some(operator) = operators.iter().find(|operator| self.take(operator)) {
            left = Expr::Apply(operator, vec![left, self.level(level + 1)?]);
        }
        Ok(left)
    }

    fn operand(&mut self) -> Result<Expr, String> {
        let token = self.token()?;
        if let Ok(number) = token.parse() {
            return Ok(Expr::Number(number));
        }
        match token {
            "(" => {
                let inner = self.either()?;
                self.expect(")")?;
                Ok(inner)
            }
            "not" => Ok(Expr::Apply("not", vec![self.level(NEGATED)?])),
            "-" => Ok(Expr::Apply("-", vec![Expr::Number(0), self.operand()?])),
            "max" => {
                self.expect("(")?;
                let a = self.either()?;
                self.expect(",")?;
                let b = self.either()?;
                self.expect(")")?;
                Ok(Expr::Apply("max", vec![a, b]))
            }
            _ if !token.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_') => {
                Err(format!("`{token}` is not expected here"))
            }
            _ if self.take("(") => {
                let (words, after) = self.0.split_once(')').ok_or("a `)` is missing")?;
                self.0 = after.trim_start();
                Ok(Expr::Ask(token.to_string(), words.to_string()))
            }
            _ if self.take("[") => {
                let index = self.either()?;
                self.expect("]")?;
                Ok(Expr::At(token.to_string(), index.into()))
            }
            _ => Ok(Expr::Name(token.to_string())),
        }
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
        "max" => Some(a.max(b)),
        _ => unreachable!("every operator of LEVELS"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expressions_have_the_usual_precedence_or_say_why_they_have_no_value() {
        let dims = Dims::from([("n_head".to_string(), 32), ("n_embd".to_string(), 4096), ("i".to_string(), 3)]);
        for (text, value) in [
            ("7", Ok(7)),
            ("-1", Ok(-1)),
            ("n_embd / n_head", Ok(128)),
            ("2 + 3 * (4 - 1)", Ok(11)),
            ("10 - 3 - 2", Ok(5)),
            ("i >= 3 and i % 4 == 3", Ok(1)),
            ("i < 3 or n_head == 31", Ok(0)),
            ("not i == 3 or not (i > 3)", Ok(1)),
            ("i == 3 ? 1 | 4 : 1 / 0", Ok(5)),
            ("6 & 3 | 8", Ok(10)),
            ("max(i, n_head) * 2", Ok(64)),
            ("i == 4 and 1 / 0", Ok(0)),
            ("n_ff", Err("`n_ff` has no value here")),
            ("1 +", Err("it ends too early")),
            ("(1", Err("a `)` is missing")),
            ("1 / 0", Err("1 / 0 has no value")),
            ("1 2", Err("`2` is not expected here")),
            ("1 # 2", Err("`#` is not part of an expression")),
        ] {
            let expected = value.map_err(|problem| format!("`{text}`: {problem}"));
            assert_eq!(evaluate(text, &dims), expected, "{text}");
        }
    }
}
