package keystore

import (
	"crypto/ed25519"
	"crypto/hmac"
	"crypto/sha512"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"

	"github.com/tyler-smith/go-bip39"
)

// Path is where in the tree of a seed the owner's key is: BIP-44's purpose, a
// coin type that spells "FORM" in ASCII, account 0, all hardened. Changing it
// would lose every key whose words are on paper.
const Path = "m/44'/1179603533'/0'"

var path = []uint32{44, 1179603533, 0}

// ErrWords: not a valid list of words.
var ErrWords = errors.New("not 12 or 24 valid BIP-39 words")

// NewMnemonic makes n random words, 12 (128 bits) or 24 (256 bits), separated
// by single spaces.
func NewMnemonic(n int) (string, error) {
	if n != 12 && n != 24 {
		return "", fmt.Errorf("%w: %d asked for", ErrWords, n)
	}
	entropy, err := bip39.NewEntropy(n / 3 * 32)
	if err != nil {
		return "", fmt.Errorf("random words: %w", err)
	}
	words, err := bip39.NewMnemonic(entropy)
	if err != nil {
		return "", fmt.Errorf("random words: %w", err)
	}
	return words, nil
}

// FromMnemonic is the key of words, in any case and spacing, and a passphrase,
// usually empty. Every passphrase is valid and gives another key.
func FromMnemonic(words, passphrase string) (ed25519.PrivateKey, error) {
	list := strings.Fields(strings.ToLower(words))
	if len(list) != 12 && len(list) != 24 {
		return nil, fmt.Errorf("%w: %d given", ErrWords, len(list))
	}
	seed, err := bip39.NewSeedWithErrorChecking(strings.Join(list, " "), passphrase)
	if err != nil {
		// The library's text quotes the word that is wrong: a secret.
		return nil, fmt.Errorf("%w: a word is misspelt, missing or in the wrong place", ErrWords)
	}
	return derive(seed, path), nil
}

// Import is the key of what a person has kept: words as FromMnemonic takes them,
// or the 64 hexadecimal digits of a raw Ed25519 seed, to which a passphrase does
// not apply.
func Import(text, passphrase string) (ed25519.PrivateKey, error) {
	text = strings.TrimSpace(text)
	if len(text) != hex.EncodedLen(ed25519.SeedSize) {
		return FromMnemonic(text, passphrase)
	}
	seed, err := hex.DecodeString(text)
	if err != nil { // the library's text quotes a character of the secret
		return FromMnemonic(text, passphrase)
	}
	if passphrase != "" {
		return nil, fmt.Errorf("%w: a passphrase belongs to words, not to a raw seed", ErrWords)
	}
	return ed25519.NewKeyFromSeed(seed), nil
}

// derive is SLIP-0010 for Ed25519, where every index is hardened.
func derive(seed []byte, path []uint32) ed25519.PrivateKey {
	node := mac([]byte("ed25519 seed"), seed)
	for _, index := range path {
		data := append([]byte{0}, node[:32]...)
		node = mac(node[32:], binary.BigEndian.AppendUint32(data, index|1<<31))
	}
	return ed25519.NewKeyFromSeed(node[:32])
}

func mac(key, data []byte) []byte {
	h := hmac.New(sha512.New, key)
	h.Write(data)
	return h.Sum(nil)
}
