package admin

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"livepatch/internal/patch"
	"livepatch/server/internal/explain"
	"livepatch/server/internal/rollout"
	"livepatch/server/internal/store"
	"livepatch/server/internal/store/sqlite"
	"livepatch/server/internal/withdraw"
)

// A picture is everything that there is to show of a rollout.
type picture struct {
	store.Rollout
	stages    store.Stages
	decision  store.Decision // the last one of people; none if its State is ""
	verdicts  []rollout.Decision
	proposals []store.Request // that wait for a second person
	waiting   []store.Request // for the server
	gone      int64           // machines that gave the patch up, during a withdrawal
	crashed   int64           // of them
}

func (a *admin) showCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "show VENDOR VERSION",
		Short: "Show how far a patch has come on each kernel, and why no further",
		Args:  cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.with(cmd.Context(), func(db *sqlite.DB) error {
				p, err := look(cmd.Context(), db, args[0], args[1], time.Now())
				switch {
				case err != nil:
					return fmt.Errorf("cannot show rollout of %s %s: %w", args[0], args[1], err)
				case asJSON:
					return json.NewEncoder(cmd.OutOrStdout()).Encode(p.report())
				}
				return p.print(cmd.OutOrStdout())
			})
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print a JSON object")
	return cmd
}

// look gathers what there is to show, as of one moment.
func look(ctx context.Context, db *sqlite.DB, vendor, version string, now time.Time) (p picture, err error) {
	err = db.View(ctx, func(tx store.Tx) (err error) {
		if p.Rollout, err = tx.Rollout(ctx, vendor, version); err != nil {
			return err
		}
		if p.stages, err = stagesOf(ctx, tx, vendor, version); err != nil {
			return err
		}
		return p.people(ctx, tx, now)
	})
	if err != nil {
		return p, err
	}
	bodies, err := db.Verdicts(ctx, store.Key{Vendor: vendor, Version: version})
	if err != nil {
		return p, err
	}
	p.verdicts, err = lastVerdicts(bodies)
	return p, err
}

// people fills in what people have decided, and what waits for them.
func (p *picture) people(ctx context.Context, tx store.Tx, now time.Time) error {
	decisions, err := tx.Decisions(ctx, 0)
	if err != nil {
		return err
	}
	for _, d := range decisions {
		if d.Vendor == p.Vendor && d.Version == p.Version {
			p.decision = d
		}
	}
	requests, err := tx.RequestLog(ctx)
	if err != nil {
		return err
	}
	seconded := map[int64]bool{}
	for _, r := range requests {
		seconded[r.Proposal] = true
	}
	for _, r := range requests {
		switch {
		case r.Vendor != p.Vendor || r.Version != p.Version:
		case r.Kind == store.RequestProposal && !seconded[r.ID] && now.Sub(r.At) < proposalLife:
			p.proposals = append(p.proposals, r)
		case r.Kind != store.RequestProposal && r.Taken.IsZero():
			p.waiting = append(p.waiting, r)
		}
	}
	if p.Withdrawal.Share == 0 {
		return nil
	}
	if p.gone, err = tx.GaveUp(ctx, p.Version, p.Withdrawal.Began); err != nil {
		return err
	}
	p.crashed, err = tx.Crashed(ctx, p.Version, p.Withdrawal.Began)
	return err
}

// lastVerdicts returns the last decision about each unit, in the order in which the
// units came up.
func lastVerdicts(bodies [][]byte) (last []rollout.Decision, err error) {
	at := map[string]int{}
	for _, b := range bodies {
		var d rollout.Decision
		if err := json.Unmarshal(b, &d); err != nil {
			return nil, fmt.Errorf("cannot read verdict: %w", err)
		}
		i, ok := at[d.Unit]
		if !ok {
			i = len(last)
			at[d.Unit] = i
			last = append(last, d)
		}
		last[i] = d
	}
	return last, nil
}

func (p *picture) print(w io.Writer) error {
	fmt.Fprintf(w, "%s %s: %s; published %s\n", p.Vendor, p.Version, stateOf(p.Rollout, p.stages.Stages), when(p.Created, "-"))
	if d := p.decision; d.State != "" {
		fmt.Fprintf(w, "decided at %s by %s: %s\n", when(d.At, "-"), d.By, orDash(d.Reason))
	}
	p.printWithdrawal(w)
	for _, r := range p.proposals {
		fmt.Fprintf(w, "resume of %s proposed by %s at %s; another administrator has to run: livepatch-admin rollout resume %s\n",
			name(r), r.By.Account, when(r.At, "-"), name(r))
	}
	for _, r := range p.waiting {
		fmt.Fprintf(w, "%s, asked by %s at %s, waits for the server\n", wish(r), r.Who(), when(r.At, "-"))
	}
	fmt.Fprintln(w)
	if len(p.stages.Stages) == 0 {
		fmt.Fprintln(w, "The rule has not looked at it yet.")
		return nil
	}
	if err := table(w, stageRows(p.stages.Stages)); err != nil {
		return err
	}
	fmt.Fprintf(w, "\nas of %s\n", when(p.stages.At, "-"))
	for _, d := range p.verdicts {
		fmt.Fprintf(w, "%s: %s (%s)\n", d.Unit, explain.Verdict(d), when(time.Unix(d.At, 0), "-"))
		if next := explain.Next(p.Vendor, p.Version, d); next != "" && d.Verdict.Action != rollout.Halt {
			fmt.Fprintf(w, "    next step: %s\n", next)
		}
	}
	return nil
}

func (p *picture) printWithdrawal(w io.Writer) {
	d := p.Withdrawal
	if d.Share == 0 {
		return
	}
	fmt.Fprintf(w, "given up by %d machines; %d of them went down afterwards\n", p.gone, p.crashed)
	switch {
	case p.State == patch.Revoked:
	case d.Held != "":
		fmt.Fprintf(w, "waits for a person: %s; look at them, then run: livepatch-admin rollout revoke --continue %s %s\n",
			d.Held, p.Vendor, p.Version)
	default:
		next := withdraw.Next(d, 0, 0, d.Since.Add(d.Pause))
		fmt.Fprintf(w, "goes on to %s at %s\n", explain.Share(next.Share), when(d.Since.Add(d.Pause), "-"))
	}
}

func stageRows(stages []store.Stage) [][]string {
	rows := [][]string{{"UNIT", "TIER", "STATE", "SHARE", "MACHINES", "EXPOSED", "PENDING", "SOFT", "FAILED", "CONTROLS FAILED", "LAST VERDICT"}}
	for _, s := range stages {
		rows = append(rows, []string{
			s.Unit, s.Tier, stateOfStage(s), explain.Share(s.Share), strconv.FormatInt(s.Machines, 10),
			strconv.FormatInt(s.Exposed, 10), strconv.FormatInt(s.Pending, 10), strconv.FormatInt(s.Soft, 10),
			explain.Tally(s.Treated), explain.Tally(s.Control), lastWord(s),
		})
	}
	return rows
}

func stateOfStage(s store.Stage) string {
	switch {
	case s.Halted != "":
		return "halted"
	case s.Current:
		return "widening"
	case s.Everyone:
		return "everyone"
	default:
		return "not yet"
	}
}

func lastWord(s store.Stage) string {
	if !s.Current {
		return "-"
	}
	return fmt.Sprintf("%s (%s)", orDash(string(s.Action)), orDash(string(s.Reason)))
}

// A report is a picture as JSON.
type report struct {
	Vendor     string             `json:"vendor"`
	Version    string             `json:"version"`
	State      patch.RolloutState `json:"state"`
	Since      time.Time          `json:"since"`
	Withdrawal *withdrawal        `json:"withdrawal,omitempty"`
	At         time.Time          `json:"at,omitzero"` // of the rule's last step
	Stages     []store.Stage      `json:"stages"`
	Verdicts   []rollout.Decision `json:"verdicts"` // the last one about each unit
	Proposals  []entry            `json:"proposals"`
	Waiting    []entry            `json:"waiting"`
}

type withdrawal struct {
	Share   int64     `json:"share"` // parts per million
	Since   time.Time `json:"since"`
	Pause   int64     `json:"pause_seconds"`
	Held    string    `json:"held,omitempty"`
	Gone    int64     `json:"machines_gave_up"`
	Crashed int64     `json:"machines_went_down"`
}

func (p *picture) report() report {
	r := report{
		Vendor: p.Vendor, Version: p.Version, State: p.State, Since: p.Updated, At: p.stages.At,
		Stages: append([]store.Stage{}, p.stages.Stages...), Verdicts: append([]rollout.Decision{}, p.verdicts...),
		Proposals: []entry{}, Waiting: []entry{},
	}
	if w := p.Withdrawal; w.Share > 0 {
		r.Withdrawal = &withdrawal{w.Share, w.Since, int64(w.Pause / time.Second), w.Held, p.gone, p.crashed}
	}
	for _, q := range p.proposals {
		r.Proposals = append(r.Proposals, ofRequest(q))
	}
	for _, q := range p.waiting {
		r.Waiting = append(r.Waiting, ofRequest(q))
	}
	return r
}
