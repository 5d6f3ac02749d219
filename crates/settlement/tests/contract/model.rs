//! A model of channels in plain Rust beside the real contract: the same steps, the same outcomes.

use proptest::prelude::*;
use sluice_proto::{Amount, ChannelKey, EthAddress};
use sluice_settlement::{ChannelSlot, PERIOD_MIN_S, call};

use crate::evm::Evm;
use crate::{PAYER, PAYOUT, STRANGER, key, payee, voucher};

const MINTED: u128 = 1_000;
const CHANNELS: u8 = 3;

#[derive(Debug, Clone)]
enum Step {
    Open { channel: u8, deposit: u128 },
    TopUp { channel: u8, more: u128 },
    Redeem { channel: u8, amount: u128 },
    RedeemMany { amounts: Vec<(u8, u128)> },
    CloseByPayee { channel: u8, amount: u128, consent: bool },
    StartClose { channel: u8 },
    FinishClose { channel: u8 },
    Wait { seconds: u32 },
}

fn any_step() -> impl Strategy<Value = Step> {
    let channel = || 0..CHANNELS;
    let amount = || 0..400_u128;
    prop_oneof![
        2 => (channel(), amount()).prop_map(|(channel, deposit)| Step::Open { channel, deposit }),
        1 => (channel(), amount()).prop_map(|(channel, more)| Step::TopUp { channel, more }),
        4 => (channel(), amount()).prop_map(|(channel, amount)| Step::Redeem { channel, amount }),
        2 => prop::collection::vec((channel(), amount()), 1..5)
            .prop_map(|amounts| Step::RedeemMany { amounts }),
        1 => (channel(), amount(), any::<bool>())
            .prop_map(|(channel, amount, consent)| Step::CloseByPayee { channel, amount, consent }),
        1 => channel().prop_map(|channel| Step::StartClose { channel }),
        2 => channel().prop_map(|channel| Step::FinishClose { channel }),
        2 => (0..2 * PERIOD_MIN_S).prop_map(|seconds| Step::Wait { seconds }),
    ]
}

/// What should be true of the chain.
struct Model {
    slots: Vec<Option<ChannelSlot>>,
    payer: u128,
    payout: u128,
    time: u64,
}

impl Model {
    /// The outcome of a step: whether the contract accepts it.
    fn step(&mut self, step: &Step) -> bool {
        match *step {
            Step::Open { channel, deposit } => self.open(channel, deposit),
            Step::TopUp { channel, more } => self.top_up(channel, more),
            Step::Redeem { channel, amount } => self.redeem(channel, amount),
            Step::RedeemMany { ref amounts } => amounts
                .iter()
                .map(|(channel, amount)| self.redeem(*channel, *amount))
                .fold(false, |any, paid| any | paid),
            Step::CloseByPayee { channel, amount, .. } => self.close_by_payee(channel, amount),
            Step::StartClose { channel } => self.start_close(channel),
            Step::FinishClose { channel } => self.finish_close(channel),
            Step::Wait { seconds } => {
                self.time += u64::from(seconds);
                true
            }
        }
    }

    fn live(&mut self, channel: u8) -> Option<&mut ChannelSlot> {
        self.slots[usize::from(channel)].as_mut().filter(|slot| !slot.closed)
    }

    fn open(&mut self, channel: u8, deposit: u128) -> bool {
        let slot = &mut self.slots[usize::from(channel)];
        if slot.is_some() || deposit == 0 || deposit > self.payer {
            return false;
        }
        self.payer -= deposit;
        *slot = Some(ChannelSlot {
            deposit: Amount(deposit),
            redeemed: Amount(0),
            period_s: PERIOD_MIN_S,
            closing_at_unix_s: None,
            closed: false,
        });
        true
    }

    fn top_up(&mut self, channel: u8, more: u128) -> bool {
        let enough = more > 0 && more <= self.payer;
        let slot = self.live(channel).filter(|slot| slot.closing_at_unix_s.is_none());
        let Some(slot) = slot.filter(|_| enough) else { return false };
        slot.deposit.0 += more;
        self.payer -= more;
        true
    }

    fn redeem(&mut self, channel: u8, amount: u128) -> bool {
        let Some(slot) = self.live(channel) else { return false };
        if amount <= slot.redeemed.0 || amount > slot.deposit.0 {
            return false;
        }
        let paid = amount - slot.redeemed.0;
        slot.redeemed.0 = amount;
        self.payout += paid;
        true
    }

    fn close_by_payee(&mut self, channel: u8, amount: u128) -> bool {
        let Some(slot) = self.live(channel) else { return false };
        if amount < slot.redeemed.0 || amount > slot.deposit.0 {
            return false;
        }
        self.redeem(channel, amount);
        self.close(channel)
    }

    fn start_close(&mut self, channel: u8) -> bool {
        let closes_at = self.time + u64::from(PERIOD_MIN_S);
        let slot = self.live(channel).filter(|slot| slot.closing_at_unix_s.is_none());
        let Some(slot) = slot else { return false };
        slot.closing_at_unix_s = Some(closes_at);
        true
    }

    fn finish_close(&mut self, channel: u8) -> bool {
        let time = self.time;
        let due = self
            .live(channel)
            .is_some_and(|slot| slot.closing_at_unix_s.is_some_and(|closes_at| closes_at <= time));
        due && self.close(channel)
    }

    fn close(&mut self, channel: u8) -> bool {
        let Some(slot) = self.live(channel) else { return false };
        let refund = slot.deposit.0 - slot.redeemed.0;
        (slot.closed, slot.closing_at_unix_s) = (true, None);
        self.payer += refund;
        true
    }

    fn locked(&self) -> u128 {
        let open = self.slots.iter().flatten().filter(|slot| !slot.closed);
        open.map(|slot| slot.deposit.0 - slot.redeemed.0).sum()
    }
}

fn apply(evm: &mut Evm, keys: &[ChannelKey], step: &Step) -> bool {
    let of = |channel: u8| &keys[usize::from(channel)];
    let (caller, data): (EthAddress, Vec<u8>) = match step {
        Step::Open { channel, deposit } => {
            (PAYER, call::open(of(*channel), Amount(*deposit), PERIOD_MIN_S))
        }
        Step::TopUp { channel, more } => (PAYER, call::top_up(of(*channel), Amount(*more))),
        Step::Redeem { channel, amount } => {
            let (voucher, signature) = voucher(evm, of(*channel), *amount);
            (STRANGER, call::redeem(of(*channel), &voucher, &signature))
        }
        Step::RedeemMany { amounts } => {
            let vouchers: Vec<_> = amounts.iter().map(|(c, a)| voucher(evm, of(*c), *a)).collect();
            let items = amounts.iter().zip(&vouchers).map(|((c, _), (v, s))| (of(*c), v, s));
            (STRANGER, call::redeem_many(items))
        }
        Step::CloseByPayee { channel, amount, consent } => {
            let (voucher, signature) = voucher(evm, of(*channel), *amount);
            let digest = evm.domain().close_digest(voucher.channel, voucher.amount);
            let consent = consent.then(|| payee().sign(digest));
            let caller = if consent.is_some() { STRANGER } else { payee().address() };
            let voucher = Some((&voucher, &signature));
            (caller, call::close_by_payee(of(*channel), Amount(*amount), voucher, consent.as_ref()))
        }
        Step::StartClose { channel } => (PAYER, call::start_close(of(*channel))),
        Step::FinishClose { channel } => (STRANGER, call::finish_close(of(*channel))),
        Step::Wait { seconds } => {
            evm.time += u64::from(*seconds);
            return true;
        }
    };
    evm.channels(caller, data).is_ok()
}

/// What the chain says, and what the model says of the same.
type Accounts = (Vec<Option<ChannelSlot>>, [u128; 3]);

fn real(evm: &mut Evm, keys: &[ChannelKey]) -> Accounts {
    let slots = keys.iter().map(|key| evm.slot(key)).collect();
    let contract = evm.channels;
    (slots, [PAYER, PAYOUT, contract].map(|account| evm.balance(account)))
}

fn modelled(model: &Model) -> Accounts {
    (model.slots.clone(), [model.payer, model.payout, model.locked()])
}

fn beginning() -> (Evm, Vec<ChannelKey>, Model) {
    let mut evm = Evm::new();
    evm.provide(PAYER, MINTED);
    let keys = (0..CHANNELS).map(|salt| key(&evm, salt)).collect();
    let slots = vec![None; usize::from(CHANNELS)];
    let model = Model { slots, payer: MINTED, payout: 0, time: evm.time };
    (evm, keys, model)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, failure_persistence: None, ..Default::default() })]

    #[test]
    fn the_contract_does_what_the_model_does(steps in prop::collection::vec(any_step(), 1..40)) {
        let (mut evm, keys, mut model) = beginning();
        for step in &steps {
            prop_assert_eq!(apply(&mut evm, &keys, step), model.step(step), "{:?}", step);
            let accounts = modelled(&model);
            prop_assert_eq!(accounts.1.iter().sum::<u128>(), MINTED);
            prop_assert_eq!(real(&mut evm, &keys), accounts, "{:?}", step);
        }
    }
}

#[test]
fn a_payment_that_the_model_does_not_know_of_is_noticed() {
    let (mut evm, keys, mut model) = beginning();
    let open = Step::Open { channel: 0, deposit: 100 };
    assert!(apply(&mut evm, &keys, &open) && model.step(&open));
    assert_eq!(real(&mut evm, &keys), modelled(&model));
    assert!(apply(&mut evm, &keys, &Step::Redeem { channel: 0, amount: 1 }));
    assert_ne!(real(&mut evm, &keys), modelled(&model));
}
