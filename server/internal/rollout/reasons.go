package rollout

// Reasons returns all reasons that this version of the rule gives: those of a halt, and
// those of everything else. Whoever turns reasons into words or deeds goes through them,
// so that none is forgotten. A stored decision may have one of a later version.
func Reasons() (halts, others []Reason) {
	halts = []Reason{TestA, TestASource, TestB, TestCOops, TestCSilence, TestDCrash, TestSiblings}
	others = []Reason{
		WaitsForLead, WaitsForSiblings, SiblingHalted, SoftFailures, Failing, PendingOutcomes, NobodyCame, NoEvidence,
		Paused, NeedsPerson, NoMachines, FirstStage, Healthy, ByPerson, Through, AtOnce,
	}
	return halts, others
}
