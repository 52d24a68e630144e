package rollout

// This file bounds what one account can do.

// owned is how many accounts have some kernels' machines in a tier, as far as is known: at
// least as many as one of the kernels has, and as are known to be alone on one.
type owned struct {
	most  int64
	alone map[string]bool
}

func (o *owned) add(c *cell, tier int) {
	o.most = max(o.most, c.Accounts[tier])
	if c.Accounts[tier] == 1 && c.Owners != nil {
		if o.alone == nil {
			o.alone = map[string]bool{}
		}
		o.alone[c.Owners[tier]] = true
	}
}

func (o *owned) accounts() int64 { return max(o.most, int64(len(o.alone))) }

// own counts the accounts of each unit in each tier, and those of each source.
func (r *Rollout) own() {
	units, sources := make([][]owned, len(r.s.Units)), map[string][]owned{}
	for i := range units {
		units[i] = make([]owned, len(r.s.Tiers))
	}
	for name := range r.s.Sources {
		sources[name] = make([]owned, len(r.s.Tiers))
	}
	for _, c := range r.s.Cells {
		if c.Unit < 0 || sources[c.Source] == nil {
			continue
		}
		for i := range r.s.Tiers {
			units[c.Unit][i].add(c, i)
			sources[c.Source][i].add(c, i)
		}
	}
	for i, u := range r.s.Units {
		for j := range u.Lanes {
			u.Lanes[j].Accounts = units[i][j].accounts()
		}
	}
	r.owners = map[string]int64{}
	for name, tiers := range sources {
		r.owners[name] = 1
		for i := range tiers {
			r.owners[name] = max(r.owners[name], tiers[i].accounts())
		}
	}
}

// accounts is how many accounts have machines of the unit, at least 1. It is that of the tier
// with the most, and not the sum: who has one token for each tier is alone, and with
// the sum nothing that the first two tiers say would be enough to halt.
func (u *unit) accounts() int64 {
	accounts := int64(1)
	for i := range u.Lanes {
		accounts = max(accounts, u.Lanes[i].Accounts)
	}
	return accounts
}

// lone tells whether a tier is one account's, and others are not. What it says is not enough to
// halt what others have. But it is all that is known of the tier: where test B would halt, the
// tier gets no further machine, and the next one none, until a person has looked.
func (u *unit) lone(tier int) bool { return u.Lanes[tier].Accounts == 1 && u.accounts() > 1 }

// weighs tells whether what befalls a unit says something of its siblings. One account may
// halt a unit that is its own, or that it shares with one other; on a kernel
// that nobody else runs it could say anything, and the others need not suffer for it.
func (r *Rollout) weighs(u *unit) bool {
	n := u.accounts()
	return n > 2 || n >= r.owners[u.Source]
}

// fits tells whether an account that has mine of all may have one more: it may
// have its share of them, twice its fair share where there are few accounts, and at least
// some number.
func fits(mine, all int64, least, share float64, accounts int64) bool {
	share = max(share, 2/float64(accounts))
	return float64(mine+1) <= max(least, share*float64(all+1))
}

func (u *unit) fits(mine, all int64, least, share float64) bool {
	return fits(mine, all, least, share, u.accounts())
}

func (u *unit) account(id uint32) *share {
	return shareOf(u.Accounts, id)
}

func (s *source) account(id uint32) *share {
	if s.Accounts == nil {
		s.Accounts = map[uint32]*share{}
	}
	return shareOf(s.Accounts, id)
}

func shareOf(accounts map[uint32]*share, id uint32) *share {
	s := accounts[id]
	if s == nil {
		s = &share{}
		accounts[id] = s
	}
	return s
}

// The least that an account may have of trials, failures and matured machines: while
// a unit has few, a twentieth is less than one.
const (
	leastDealt  = 10
	leastFailed = 1
	leastMature = 2
)

// admits tells whether an account may have one more of the unit's trials as
// evidence. It may not ask for the arm: an account whose treated machines are
// kept and whose controls are not would bias the comparison by whatever makes
// its machines differ from others.
func (u *unit) admits(account uint32, share float64) bool {
	return u.fits(u.account(account).Dealt, u.Dealt, leastDealt, share)
}

// countsFailure tells whether one more failure of an account counts. Nor may it ask
// for the arm.
func (u *unit) countsFailure(account uint32, share float64) bool {
	return u.fits(u.account(account).Failed, u.Failed.Treated+u.Failed.Control, leastFailed, share)
}

// countsMature tells whether one more machine of an account that is well counts. It
// is no matter of the tests, only of the pace, and so it is asked for each arm.
func (u *unit) countsMature(account uint32, arm Arm, share float64) bool {
	mine, all := u.account(account).Mature, u.Mature
	have, total := mine.Treated, all.Treated
	if arm == Control {
		have, total = mine.Control, all.Control
	}
	return u.fits(have, total, leastMature, share)
}

// countsSoft tells whether one more soft failure of an account counts. It is no matter of the
// tests.
func (u *unit) countsSoft(account uint32, share float64) bool {
	return u.fits(u.account(account).Soft, u.Soft, leastFailed, share)
}
