// Package rollout decides how far a patch may spread, from what machines report
// of it, and stops it when it does harm. It has no clock, no database and no
// network: a [Rollout] is handed batches of events, each with its time, and
// answers with decisions. The same batches give the same decisions, byte for
// byte, so that a decision can be replayed, simulated and disputed.
//
// # The experiment
//
// A patch goes through tiers, and in each tier through stages that let in a
// growing share of the machines. Which machines, a hash with a salt decides
// ([Assignment]): in a stage each machine of a kernel is *treated*, *control*, or
// neither, at random and whatever becomes of it. A treated machine opens a trial
// when it says that it is about to insert the module; a control machine opens a
// sham trial at a check-in, with the same heartbeats. A trial *fails* if the
// machine goes silent, reboots uncleanly or blames our module for an oops. It
// *matures* with a sign of life after the soak, and stays under watch for some
// hours more.
//
// Machines are judged in *units*: a kernel, that is a release and architecture, or all small
// kernels of one source patch together. A unit is judged for harm as long as machines get the patch,
// also when all tiers have it.
//
// # Test A, which may be looked at after every report
//
// Machines that began in the same hour of the same stage form a *batch*. When one of
// them fails, let a and b be the numbers of its treated and control machines
// that have not failed and not left. If the patch changes no machine's fate, the hash has
// dealt the arms regardless of who fails and when, so the failing
// one is treated with probability ρ = a/(a+b), given everything before. If instead
// the patch multiplies the odds by R, that probability is θ = Ra/(Ra+b). With T = 1 for a
// treated machine and T = 0 for a control,
//
//	e_R = Π (θ/ρ)^T ((1−θ)/(1−ρ))^(1−T),   e = ¼ (e_2 + e_5 + e_20 + e_100).
//
// Each factor has expectation 1 given the past, and at most 1 if the patch spares
// machines. So e is a non-negative supermartingale that starts at 1, and by Ville's
// inequality (J. Ville, Étude critique de la notion de collectif, 1939) it ever
// reaches 1/α with probability at most α, however often one looks. This is the
// sequential form of the log-rank test: J. ter Schure, M. F. Pérez-Ortiz, A. Ly, P. Grünwald, The
// safe logrank test (2024); M. Lindon, A. Malek, Anytime-valid
// inference for multinomial count data (NeurIPS 2022), is the same idea for
// counts.
//
// The argument uses the hash only. It does not ask for machines that fail
// independently, for a constant background, or for a known one: a night in
// which half of the fleet is switched off, or a data centre without power, is fair to
// both arms. What it does ask is ρ from machines that were dealt together. The
// plainer ρ from all machines that matured so far is not that: when a stage changes
// the ratio of the arms, the past ratio is wrong for the next failure, and healthy
// patches are halted (the table in folder table shows how many).
//
// Failures at one instant in one batch are all judged with the a and b from before
// it, so that their order cannot matter. That is on the safe side: of X failures the number of
// treated ones is hypergeometric, and its moment generating function is below that of the
// binomial distribution with the same ρ, which the product of factors assumes (W.
// Hoeffding, Probability inequalities for sums of bounded random variables,
// 1963, theorem 4).
//
// One e is kept for each unit and one for each source patch over all of its
// units, each through all tiers. Their thresholds share α: see [HaltParams.Alpha].
//
// # Tests B and C, for the first minutes
//
// B is Wald's sequential probability ratio test (Sequential tests of statistical
// hypotheses, 1945) of p1 = 10 p0 against p0, on treated machines only: of those that fell silent
// in the first 15 minutes or reported a failure, among those and all that outlived them. It halts at three early
// deaths, before there are controls to compare with; it is wrong where machines
// are lost more often than p0, so p0 is measured, and once 30 controls have
// matured it is not asked any more. Silence that comes later is for A alone: where there are no
// controls B is asked for ever, and machines are switched off.
//
// C looks for what no healthy patch does: one oops signature that names our module, on two
// machines; or more than a fifth of the treated machines silent within 15 minutes while nearly
// all controls live.
//
// # Test D, for small units
//
// In a unit of ten machines three deaths are many. D halts at one crash that is the patch's, or
// at two: [HaltParams.CrashOne]. It is the patch's if an oops names our module, or if the loader found its
// trial open at boot and the machine had passed no deadline from the fifth minute on. The second
// happens by chance: a machine that goes down by itself once a year does so in six minutes with
// probability 1.14e-5, and 50 machines make 0.06 %.
//
// A machine that crashes is missed before it can say so. In small units what is known of it is
// kept for a week.
//
// # How far next
//
// With x failures in n matured treated machines and y in m controls, U is an upper
// confidence limit of what the patch adds to the rate of failure: exact limits for each
// rate (C. J. Clopper, E. S. Pearson, 1934), combined by the MOVER method (G. Y. Zou,
// A. Donner, Construction of confidence limits about effect measures, 2008). While no
// control has failed it is BetaInv(0.95; x+1, n−x), about 3/n at no failure. The
// next stage lets in N′ = H/U more machines, so that at most about H of them are
// at risk: 30, 300, 3000, … . This is pacing and not a test; the error that is
// controlled is that of halting.
//
// Where there are few controls or none, in small units, in kernels that come when their
// siblings have the patch, and in tiers of fewer than 20 machines, the first machine begins alone. Then
// as many may be in their first 15 minutes as have lived through them.
//
// # Machines that try again
//
// A machine counts once in a stage among those that came, that were exposed and to which
// the patch did not go in, with how its last trial ended. One that asks again before it gave a sign of
// life begins anew, some times: the answer was lost, and it counts from the one it got. Its evidence in the tests
// is that of each trial, within the share of its account.
//
// # Accounts that lie
//
// Machines belong to accounts, and one account may run many machines that say
// whatever it likes. Two limits, both a share of 5 %, or of 2/accounts where a unit has fewer than
// forty accounts ([PaceParams.AccountShare]):
//
//   - A trial is *evidence* only if its account does not have more than its share of the
//     evidence of the unit already. Other trials are watched and count against the
//     limits of exposure, but not in any number above but test C's oops.
//   - Of the failures of a unit, no more than its share, and at least one, are counted from
//     one account. The same holds for what did not go in.
//
// In the evidence of a source, its e and its number of controls, an account has its share of what all
// units of the source show, too. An account that is alone on a kernel, or shares it with
// one other, may halt it by itself. Where the source has more accounts that halt says nothing of
// the siblings ([Rollout.weighs]): they neither wait nor are halted, the unit is not the lead, nobody waits for
// it, and what is known of it lets no other widen.
//
// Accounts are counted in each tier, and the largest number is taken: an account belongs to
// one tier, and a fleet with a token for each would be many accounts, of which only the first could show anything
// in time. So two accounts that are each alone in a tier of a kernel count as one, and each may halt it.
//
// Both rules look at the past and at the account and never at the arm. Leaving a
// failure out replaces its factor by 1, and whether to leave it out is known
// before its arm is: optional skipping, under which e stays a supermartingale. So a lying account
// has one factor, at most 1/ρ and at least 1/(100ρ+1−ρ), until there are forty counted failures, and a twentieth
// of them then. If all of the twentieth are said to be treated, the treated share of the failures is 0.24 instead of
// ρ = 0.2, and every e_R still falls: for R = 2, the nearest, it falls while the share is below 0.263.
//
// Machines that enrolled after the salt was drawn ([Event.Newcomer]) may have chosen their
// identities to fit it. They are evidence where that gains nothing: in small units, in which an account
// reaches the first stage anyhow; in the fleet of one account, which would lie to itself; and in a unit in which for a
// day no other machine came.
package rollout
