package guest

import "time"

// appEvent is what the supervisor last said of the application.
type appEvent struct {
	running  bool
	since    time.Time // of this run
	restarts int
	failed   bool   // it ended badly and will not be started again
	done     bool   // it ended well and will not be started again
	reason   string // why it is not running
}

// condition is everything the guest's status follows from.
type condition struct {
	configErr  error // the configuration could not be applied
	configured bool
	stopping   bool
	hasApp     bool
	app        appEvent
	hasCheck   bool
	checked    bool  // the check has answered for this run of the application
	checkErr   error // its last answer
	wasReady   bool  // ready at some time since boot
	lastExit   string
}

// verdict is the status that follows from c at time now. When it may change by
// time alone, recheck says after how long.
func (c condition) verdict(now time.Time) (s Status, recheck time.Duration) {
	s.Restarts = c.app.restarts
	starting := func(reason string) {
		s.Phase, s.Reason = PhaseStarting, reason
		// An application that keeps dying does not look fresh between deaths.
		if c.app.restarts > 0 && c.lastExit != "" {
			s.Phase, s.Reason = PhaseUnhealthy, c.lastExit
		}
	}
	switch {
	case c.stopping:
		s.Phase = PhaseStopping
	case c.configErr != nil:
		s.Phase, s.Reason = PhaseFailed, c.configErr.Error()
	case !c.configured:
		s.Phase = PhaseStarting
	case c.hasApp && c.app.failed:
		s.Phase, s.Reason = PhaseFailed, c.app.reason
	case c.hasApp && c.app.done:
		s.Phase, s.Reason = PhaseReady, c.app.reason
	case c.hasApp && !c.app.running && c.app.reason == "":
		s.Phase = PhaseStarting
	case c.hasApp && !c.app.running:
		s.Phase, s.Reason = PhaseUnhealthy, c.app.reason
	case c.hasCheck && !c.checked:
		starting("")
	case c.hasCheck && c.checkErr == nil:
		s.Phase = PhaseReady
	case c.hasCheck && c.wasReady:
		s.Phase, s.Reason = PhaseUnhealthy, c.checkErr.Error()
	case c.hasCheck:
		starting("waiting: " + c.checkErr.Error())
	case c.hasApp && now.Sub(c.app.since) < settleTime:
		starting("")
		recheck = settleTime - now.Sub(c.app.since)
	default:
		s.Phase = PhaseReady
	}
	return s, recheck
}
