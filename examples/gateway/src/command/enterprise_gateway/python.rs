//! Reads the assignments of a configuration file in Python, such as `c.EnterpriseGatewayApp.port = 8888`.

use std::iter::Peekable;
use std::str::Chars;

use serde_json::{Map, Number, Value};

/// The deepest nesting of lists that is read.
const MAX_DEPTH: u32 = 16;

/// The assigned values by class and trait, and the numbers of the lines that are something else.
pub(super) fn read(text: &str) -> (Map<String, Value>, Vec<usize>) {
    let mut classes = Map::new();
    let mut other = Vec::new();
    let mut lines = text.lines().enumerate().map(|(index, line)| (index + 1, line));
    while let Some((number, line)) = lines.next() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') || line.replace(' ', "") == "c=get_config()" {
            continue;
        }
        let Some((class, name, mut right)) = assignment(line) else {
            other.push(number);
            continue;
        };
        // A list may continue on the following lines.
        let value = loop {
            match Literal::new(&right).whole() {
                Parsed::Value(value) => break Some(value),
                Parsed::Wrong => break None,
                Parsed::Unfinished => match lines.next() {
                    Some((_, line)) => {
                        right.push('\n');
                        right.push_str(line);
                    }
                    None => break None,
                },
            }
        };
        match value {
            Some(value) => {
                let class = classes.entry(class).or_insert_with(|| Value::Object(Map::new()));
                if let Value::Object(traits) = class {
                    traits.insert(name, value);
                }
            }
            None => other.push(number),
        }
    }
    (classes, other)
}

/// The class, the trait and the right side of `c.CLASS.TRAIT = VALUE`.
fn assignment(line: &str) -> Option<(String, String, String)> {
    let (left, right) = line.split_once('=')?;
    let (class, name) = left.trim().strip_prefix("c.")?.split_once('.')?;
    let is_name = |text: &str| !text.is_empty() && text.chars().all(|c| c.is_alphanumeric() || c == '_');
    (is_name(class) && is_name(name)).then(|| (class.to_owned(), name.to_owned(), right.trim().to_owned()))
}

enum Parsed {
    Value(Value),
    /// The text ends within a list.
    Unfinished,
    Wrong,
}

/// A literal of Python: a string, a number, `True`, `False`, `None`, or a list, tuple or set of these.
struct Literal<'a> {
    rest: Peekable<Chars<'a>>,
}

impl<'a> Literal<'a> {
    fn new(text: &'a str) -> Self {
        Self {
            rest: text.chars().peekable(),
        }
    }

    fn whole(mut self) -> Parsed {
        match self.value(0) {
            Ok(value) => {
                self.skip_space();
                match self.rest.peek() {
                    None => Parsed::Value(value),
                    Some(_) => Parsed::Wrong,
                }
            }
            Err(unfinished) => unfinished,
        }
    }

    /// Skips spaces, line breaks and comments.
    fn skip_space(&mut self) {
        while let Some(c) = self.rest.next_if(|c| c.is_whitespace() || *c == '#') {
            if c == '#' {
                while self.rest.next_if(|c| *c != '\n').is_some() {}
            }
        }
    }

    fn value(&mut self, depth: u32) -> Result<Value, Parsed> {
        self.skip_space();
        match self.rest.peek().copied() {
            None => Err(Parsed::Unfinished),
            Some('\'' | '"') => self.string().map(Value::String),
            Some(open @ ('[' | '(' | '{')) if depth < MAX_DEPTH => {
                self.rest.next();
                self.items(open, depth + 1).map(Value::Array)
            }
            Some(_) => self.word(),
        }
    }

    fn items(&mut self, open: char, depth: u32) -> Result<Vec<Value>, Parsed> {
        let close = match open {
            '[' => ']',
            '(' => ')',
            _ => '}',
        };
        let mut items = Vec::new();
        loop {
            self.skip_space();
            if self.rest.next_if_eq(&close).is_some() {
                return Ok(items);
            }
            items.push(self.value(depth)?);
            self.skip_space();
            match self.rest.next() {
                Some(',') => {}
                Some(c) if c == close => return Ok(items),
                None => return Err(Parsed::Unfinished),
                Some(_) => return Err(Parsed::Wrong),
            }
        }
    }

    fn string(&mut self) -> Result<String, Parsed> {
        let quote = self.rest.next();
        let mut text = String::new();
        loop {
            match self.rest.next() {
                c if c == quote => return Ok(text),
                Some('\\') => match self.rest.next() {
                    Some(c @ ('\\' | '\'' | '"')) => text.push(c),
                    Some('n') => text.push('\n'),
                    Some('t') => text.push('\t'),
                    _ => return Err(Parsed::Wrong),
                },
                None | Some('\n') => return Err(Parsed::Wrong),
                Some(c) => text.push(c),
            }
        }
    }

    fn word(&mut self) -> Result<Value, Parsed> {
        let mut word = String::new();
        while let Some(c) = self
            .rest
            .next_if(|c| c.is_alphanumeric() || matches!(c, '.' | '-' | '+' | '_'))
        {
            word.push(c);
        }
        match word.as_str() {
            "True" => return Ok(Value::Bool(true)),
            "False" => return Ok(Value::Bool(false)),
            "None" => return Ok(Value::Null),
            _ => {}
        }
        let number = word.replace('_', "");
        let whole = number.parse().ok().map(|number: i64| Value::Number(number.into()));
        let decimal = || number.parse().ok().and_then(Number::from_f64).map(Value::Number);
        whole.or_else(decimal).ok_or(Parsed::Wrong)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn assignments_of_literals_are_read() {
        let text = "\
# Configuration
c = get_config()  # noqa
c = get_config()

c.EnterpriseGatewayApp.port = 9_999  # the port
c.EnterpriseGatewayApp.ip = '0.0.0.0'
c.EnterpriseGatewayApp.list_kernels=True
c.EnterpriseGatewayApp.auth_token = \"a'\\\"b\"
c.EnterpriseGatewayApp.authorized_users = {
    'ada',  # first
    'bob',
}
c.EnterpriseGatewayApp.client_envs = ('A', \"B\")
c.RemoteMappingKernelManager.cull_idle_timeout = 1.5
c.RemoteMappingKernelManager.nothing = None
";
        let (classes, other) = read(text);
        let expected = json!({
            "EnterpriseGatewayApp": {
                "port": 9999, "ip": "0.0.0.0", "list_kernels": true, "auth_token": "a'\"b",
                "authorized_users": ["ada", "bob"], "client_envs": ["A", "B"],
            },
            "RemoteMappingKernelManager": {"cull_idle_timeout": 1.5, "nothing": null},
        });
        assert_eq!(Value::Object(classes), expected);
        assert_eq!(other, [2]);
    }

    #[test]
    fn other_lines_are_named() {
        for line in [
            "import os",
            "c.A.b = os.environ['X']",
            "c.A.b = 'x' + 'y'",
            "c.A.b = [1, 2",
            "c.A.b = 'x",
            "c.A.b = '\\x41'",
            "c.A.b = [1 2]",
            "c.A.b",
            "c.A.b.c = 1",
            "c.A.b = ",
            "x = 1",
            &format!("c.A.b = {}", "[".repeat(1_000)),
        ] {
            let (classes, other) = read(line);
            assert!(classes.is_empty(), "{line}");
            assert_eq!(other, [1], "{line}");
        }
    }
}
