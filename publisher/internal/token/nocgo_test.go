//go:build !cgo

package token

import (
	"errors"
	"testing"
)

func TestAProgramWithoutCgoSaysSo(t *testing.T) {
	b := &Backend{}
	if _, err := b.Open(t.Context(), "k", "pkcs11:token=a;object=b?module-path=/lib/p.so"); !errors.Is(err, ErrNoCgo) {
		t.Errorf("Open = %v, want ErrNoCgo", err)
	}
	if err := b.Close(); err != nil {
		t.Error(err)
	}
}
