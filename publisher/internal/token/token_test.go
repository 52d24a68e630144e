package token

import (
	"errors"
	"reflect"
	"testing"
)

func TestParse(t *testing.T) {
	got, err := parse("pkcs11:token=My%20token;serial=0001;object=root-1;id=%01%ff?module-path=/lib/p.so&pin-source=file:/run/pin")
	want := address{module: "/lib/p.so", token: "My token", serial: "0001", object: "root-1", id: []byte{1, 255}, pin: "file:/run/pin"}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("parse = %+v, %v; want %+v", got, err, want)
	}
}

func TestParseRefuses(t *testing.T) {
	tests := map[string]string{
		"another scheme":            "https://token",
		"no token":                  "pkcs11:object=a?module-path=/lib/p.so",
		"no key":                    "pkcs11:token=a?module-path=/lib/p.so",
		"no library":                "pkcs11:token=a;object=b",
		"a library by a short path": "pkcs11:token=a;object=b?module-path=p.so",
		"a PIN":                     "pkcs11:token=a;object=b?module-path=/lib/p.so&pin-value=1234",
		"half an attribute":         "pkcs11:token;object=b?module-path=/lib/p.so",
		"an attribute twice":        "pkcs11:token=a;token=b;object=b?module-path=/lib/p.so",
		"a bad escape":              "pkcs11:token=%zz;object=b?module-path=/lib/p.so",
	}
	for name, uri := range tests {
		t.Run(name, func(t *testing.T) {
			if a, err := parse(uri); !errors.Is(err, ErrURI) {
				t.Errorf("parse = %+v, %v; want ErrURI", a, err)
			}
		})
	}
}

func FuzzParse(f *testing.F) {
	f.Add("pkcs11:token=My%20token;object=root-1;id=%01?module-path=/lib/p.so&pin-source=file:/run/pin")
	f.Add("pkcs11:")
	f.Add("pkcs11:token=a;object=b?module-path=/lib/p.so&pin-value=1")
	f.Fuzz(func(t *testing.T, uri string) {
		a, err := parse(uri)
		if err == nil && (a.module == "" || a.token+a.serial == "" || a.object == "" && len(a.id) == 0) {
			t.Errorf("%q means no key: %+v", uri, a)
		}
	})
}
