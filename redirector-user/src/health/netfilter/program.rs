//! The conditions of a rule, as steps of a machine with registers: that of nf_tables (net/netfilter/nf_tables_core.c), to which
//! those of x_tables are brought.

use std::collections::{BTreeSet, HashMap};

use super::packet::{Field, Truth, Value, View};
use super::verdict::{Element, Verdict};

/// What a rule does to a packet besides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Effect {
    Untrack,
    Mark,
    Source,
    Destination,
}

/// How a value is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Operation {
    Equal,
    Unequal,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

/// A step. Registers are of 32 bits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    Load {
        to: usize,
        field: Field,
    },
    Mask {
        from: usize,
        to: usize,
        mask: Vec<u8>,
        xor: Vec<u8>,
    },
    /// Units of so many bytes are turned around.
    Swap {
        from: usize,
        to: usize,
        len: usize,
        size: usize,
    },
    Compare {
        register: usize,
        operation: Operation,
        value: Vec<u8>,
    },
    Range {
        register: usize,
        from: Vec<u8>,
        to: Vec<u8>,
        inverted: bool,
    },
    Lookup {
        register: usize,
        len: usize,
        elements: Vec<Element>,
        inverted: bool,
    },
    /// By a map to verdicts.
    Map {
        register: usize,
        len: usize,
        elements: Vec<Element>,
    },
    /// One of several holds.
    Any {
        of: Vec<Vec<Step>>,
        inverted: bool,
    },
    /// No register is known any more.
    Forget,
    /// It may hold.
    Unknown,
    Never,
    Effect(Effect),
    Verdict(Verdict),
}

/// What may come of a rule.
#[derive(Default)]
pub(super) struct Result {
    /// The last one is certain if `is_certain`.
    pub verdicts: Vec<Verdict>,
    pub is_certain: bool,
    pub effects: Vec<(Effect, Truth)>,
}

#[derive(Default)]
struct Registers {
    /// Bits and which are known, by bytes.
    bytes: HashMap<usize, (u8, u8)>,
    /// Where fields begin.
    begins: BTreeSet<usize>,
    never: HashMap<usize, Vec<Vec<u8>>>,
}

impl Registers {
    fn write(&mut self, register: usize, value: Value) {
        // The rest of the last register is zero.
        let padded = value.bits.len().next_multiple_of(4);
        for at in 0..padded {
            let byte = value.bits.get(at).zip(value.known.get(at)).map_or((0, 0xff), |(a, b)| (*a, *b));
            self.bytes.insert(register * 4 + at, byte);
            self.begins.remove(&(register + at / 4));
            self.never.remove(&(register + at / 4));
        }
        self.begins.insert(register);
        self.never.insert(register, value.never);
    }

    fn read(&self, register: usize, len: usize) -> Value {
        let bytes = (0..len).map(|at| self.bytes.get(&(register * 4 + at)).copied().unwrap_or_default());
        let (bits, known) = bytes.unzip();
        Value { bits, known, never: self.never.get(&register).cloned().unwrap_or_default() }
    }

    /// Whether what begins at a register is an element: field by field, as ranges of concatenations are (nft_set_pipapo.c).
    fn is_element(&self, register: usize, len: usize, element: &Element) -> Truth {
        let mut bounds: Vec<usize> = self
            .begins
            .range(register + 1..register + len.div_ceil(4).max(1))
            .map(|at| (at - register) * 4)
            .collect();
        bounds.insert(0, 0);
        bounds.push(len);
        bounds.windows(2).fold(Truth::Yes, |truth, ends| {
            let (first, end) = (ends[0], ends[1]);
            let (Some(from), Some(to)) = (element.from.get(first..end), element.to.get(first..end)) else {
                return Truth::Unknown;
            };
            truth.and(self.read(register + first / 4, end - first).is_within(from, to))
        })
    }
}

/// Lets a packet meet a rule.
pub(super) fn run(steps: &[Step], view: View<'_>) -> Result {
    let mut result = Result::default();
    run_on(steps, view, &mut Registers::default(), &mut result);
    result
}

fn run_on(steps: &[Step], view: View<'_>, registers: &mut Registers, result: &mut Result) -> Truth {
    let mut truth = Truth::Yes;
    for step in steps {
        match step {
            Step::Effect(effect) => result.effects.push((*effect, truth)),
            Step::Verdict(Verdict::Continue) => return truth,
            Step::Verdict(verdict) => {
                result.verdicts.push(verdict.clone());
                result.is_certain = truth == Truth::Yes;
                return truth;
            }
            Step::Map { register, len, elements } => {
                let mut found = Truth::No;
                for element in elements_in_order(elements) {
                    let is_it = truth.and(registers.is_element(*register, *len, element));
                    if is_it != Truth::No {
                        result.verdicts.extend(element.decision());
                        result.is_certain = is_it == Truth::Yes && element.decision().is_some();
                        found = found.or(is_it);
                    }
                    if is_it == Truth::Yes {
                        break;
                    }
                }
                truth = truth.and(found);
                if found != Truth::Unknown {
                    return truth;
                }
            }
            step => truth = truth.and(condition(step, view, registers)),
        }
        if truth == Truth::No {
            return truth;
        }
    }
    truth
}

/// The one that stands for all others comes last.
fn elements_in_order(elements: &[Element]) -> impl Iterator<Item = &Element> {
    let is_rest = |element: &&Element| {
        element.from.iter().all(|byte| *byte == 0) && element.to.iter().all(|byte| *byte == 0xff)
    };
    elements.iter().filter(move |element| !is_rest(element)).chain(elements.iter().filter(is_rest))
}

fn condition(step: &Step, view: View<'_>, registers: &mut Registers) -> Truth {
    match step {
        Step::Load { to, field } => match view.field(*field) {
            Some(value) => registers.write(*to, value),
            None => return Truth::No,
        },
        Step::Mask { from, to, mask, xor } => {
            let mut value = registers.read(*from, mask.len());
            for (at, mask) in mask.iter().enumerate() {
                let xor = xor.get(at).copied().unwrap_or_default();
                // What the mask takes away is known to be zero.
                value.known[at] |= !mask;
                value.bits[at] = (value.bits[at] & mask ^ xor) & value.known[at];
            }
            value.never.clear();
            registers.write(*to, value);
        }
        Step::Swap { from, to, len, size } => {
            let mut value = registers.read(*from, *len);
            let never = std::mem::take(&mut value.never);
            let turn = |bytes: &mut Vec<u8>| bytes.chunks_mut((*size).max(1)).for_each(<[u8]>::reverse);
            turn(&mut value.bits);
            turn(&mut value.known);
            value.never = never;
            value.never.iter_mut().for_each(turn);
            registers.write(*to, value);
        }
        Step::Compare { register, operation, value } => {
            let own = registers.read(*register, value.len());
            let (lowest, highest) = (vec![0; value.len()], vec![0xff; value.len()]);
            return match operation {
                Operation::Equal => own.is(value),
                Operation::Unequal => own.is(value).inverted(true),
                Operation::Less => own.is_within(value, &highest).inverted(true),
                Operation::LessOrEqual => own.is_within(&lowest, value),
                Operation::Greater => own.is_within(&lowest, value).inverted(true),
                Operation::GreaterOrEqual => own.is_within(value, &highest),
            };
        }
        Step::Range { register, from, to, inverted } => {
            return registers.read(*register, from.len()).is_within(from, to).inverted(*inverted);
        }
        Step::Lookup { register, len, elements, inverted } => {
            let is_one = |truth: Truth, element| truth.or(registers.is_element(*register, *len, element));
            return elements.iter().fold(Truth::No, is_one).inverted(*inverted);
        }
        Step::Any { of, inverted } => {
            let mut nothing = Result::default();
            let mut holds = |steps: &Vec<Step>| run_on(steps, view, registers, &mut nothing);
            return of.iter().fold(Truth::No, |truth, steps| truth.or(holds(steps))).inverted(*inverted);
        }
        Step::Forget => *registers = Registers::default(),
        Step::Unknown => return Truth::Unknown,
        Step::Never => return Truth::No,
        Step::Map { .. } | Step::Effect(_) | Step::Verdict(_) => {}
    }
    Truth::Yes
}
