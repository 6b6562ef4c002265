//! What rules decide, and elements of maps.

/// What happens to a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Accept,
    Drop,
    /// Somebody else decides: a program that reads a queue.
    Perhaps,
    Jump(String),
    Goto(String),
    Return,
    Continue,
}

/// One key, or the keys from one to another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Element {
    pub from: Vec<u8>,
    /// The last one, too.
    pub to: Vec<u8>,
    /// NF_DROP, NF_ACCEPT or another, of a map to verdicts.
    pub verdict: Option<u32>,
    /// The chain of a verdict that has one.
    pub chain: Option<String>,
}

impl Element {
    /// What a map to verdicts does by it.
    pub(super) fn decision(&self) -> Option<Verdict> {
        self.verdict.map(|code| verdict(code, self.chain.clone()))
    }
}

/// `enum nft_verdicts`, and those of netfilter. A queue that is named nowhere is that of nobody.
pub(super) fn verdict(code: u32, chain: Option<String>) -> Verdict {
    const CONTINUE: i32 = -1;
    const BREAK: i32 = -2;
    const JUMP: i32 = -3;
    const GOTO: i32 = -4;
    const RETURN: i32 = -5;
    match (code.cast_signed(), chain) {
        (0, _) => Verdict::Drop,
        (1, _) => Verdict::Accept,
        (CONTINUE | BREAK, _) => Verdict::Continue,
        (JUMP, Some(chain)) => Verdict::Jump(chain),
        (GOTO, Some(chain)) => Verdict::Goto(chain),
        (RETURN, _) => Verdict::Return,
        _ => Verdict::Perhaps,
    }
}
