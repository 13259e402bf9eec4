package stmt

// Verified is a statement whose signature was checked, as a value that nothing
// but [Check] makes: holding one is the proof. So several States may share the
// work of one check. The zero Verified holds no statement.
type Verified struct{ st *Statement }

// Check is [Verify] for a statement that is to be applied more than once.
func Check(raw []byte, net NetworkID) (Verified, error) {
	st, err := Verify(raw, net)
	return Verified{st}, err
}

// Statement is what was verified, shared by all who hold v: only for reading.
// It is nil for the zero Verified.
func (v Verified) Statement() *Statement { return v.st }
