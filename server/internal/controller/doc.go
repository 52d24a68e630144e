// Package controller runs the rule of package rollout on what machines report: it
// is the one place in the service where rollouts are widened and halted.
//
// What machines report is acknowledged once it is in the database, together with
// what the rule has to know of it ([store.Sign]). Rounds take that from there, in its
// order: a round tells the rule of it, and commits in one transaction what the rule
// was told, what it decided from which evidence, how far each patch has come, and up
// to which report that is so. So a server that is killed loses neither a report that was
// acknowledged nor a decision, and takes no report twice.
//
// The rule's state is in memory. It is what the last state in the database becomes by
// the steps after it: the rule is told nothing that is not in the database, and not
// even the time passes for it between two steps.
//
// Of several servers on one database one leads. It holds a lock that ends with it, and
// has a term that every commit checks: one that was only slow, and comes back after
// another has taken over, changes nothing any more.
package controller
