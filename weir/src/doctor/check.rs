//! One thing that was looked at.

/// How it stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    /// As it should be, or of no weight.
    Ok,
    /// Weir serves; somebody should look.
    Warn,
    /// Weir will not serve as it should.
    Fail,
}

impl Verdict {
    /// As it is printed.
    pub fn label(self) -> &'static str {
        match self {
            Verdict::Ok => "ok",
            Verdict::Warn => "warn",
            Verdict::Fail => "fail",
        }
    }
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    /// The sysctl, option or capability by its own name.
    pub name: String,
    /// What was found.
    pub value: String,
    /// How it stands.
    pub verdict: Verdict,
    /// Why it stands so; "" where the value says it all.
    pub why: String,
    /// What changes it: a command to type where one will do. "" for none.
    pub fix: String,
}

impl Check {
    /// As it should be.
    pub fn ok(name: impl Into<String>, value: impl Into<String>) -> Check {
        Check {
            name: name.into(),
            value: value.into(),
            verdict: Verdict::Ok,
            why: String::new(),
            fix: String::new(),
        }
    }

    /// The same with a word about it.
    pub fn noting(self, why: impl Into<String>) -> Check {
        Check {
            why: why.into(),
            ..self
        }
    }

    /// Not as it should be.
    pub fn but(self, verdict: Verdict, why: impl Into<String>, fix: impl Into<String>) -> Check {
        Check {
            verdict,
            why: why.into(),
            fix: fix.into(),
            ..self
        }
    }
}
