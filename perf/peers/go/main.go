// The order endpoint of a shop in Go: net/http, go-redis with AutoPipeline, golang-jwt. See ../README.md.
package main

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"log"
	"net/http"
	"os"
	"regexp"
	"strconv"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/google/uuid"
	"github.com/redis/go-redis/v9"
)

const (
	bodyBytesMax   = 4096
	linesMax       = 8
	quantityMax    = 100
	callTimeout    = 2 * time.Second
	priceMinor     = 1999
	limitPerBuyer  = 10_000
	holdPerOrder   = time.Hour
	problemJSON    = "application/problem+json"
	timeWithMillis = "2006-01-02T15:04:05.000Z"
)

var (
	keyPattern = regexp.MustCompile(`^[!-~]{1,64}$`)
	skuPattern = regexp.MustCompile(`^[A-Za-z0-9._-]{1,64}$`)
)

type line struct {
	SKU      string `json:"sku"`
	Quantity int    `json:"quantity"`
}

type order struct {
	Items []line `json:"items"`
}

type pricedLine struct {
	SKU            string `json:"sku"`
	Quantity       int    `json:"quantity"`
	UnitPriceMinor int    `json:"unit_price_minor"`
}

type accepted struct {
	OrderID    string       `json:"order_id"`
	SaleID     string       `json:"sale_id"`
	UserID     string       `json:"user_id,omitempty"`
	Status     string       `json:"status"`
	Items      []pricedLine `json:"items"`
	TotalMinor int          `json:"total_minor"`
	Currency   string       `json:"currency"`
	ReservedAt string       `json:"reserved_at"`
	ExpiresAt  string       `json:"expires_at"`
}

type problem struct {
	Type   string `json:"type"`
	Title  string `json:"title"`
	Status int    `json:"status"`
	Code   string `json:"code"`
}

type shop struct {
	redis  redis.Cmdable
	script string // its SHA-1
	keys   map[string][]byte
	parser *jwt.Parser
	sale   string
}

func main() {
	listen := flag.String("listen", "127.0.0.1:0", "address")
	redisURL := flag.String("redis", "redis://127.0.0.1:6379/0", "Redis with the stock")
	keysFile := flag.String("keys", "", "ring of token keys (JSON)")
	scriptFile := flag.String("script", "", "the reservation script")
	sale := flag.String("sale", "", "id of the sale")
	flag.Parse()
	shop, err := open(*redisURL, *keysFile, *scriptFile, *sale)
	if err != nil {
		log.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /v1/sales/{sale}/orders", shop.order)
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusOK) })
	server := http.Server{Addr: *listen, Handler: mux, ReadHeaderTimeout: 10 * time.Second, ReadTimeout: 10 * time.Second}
	log.Fatal(server.ListenAndServe())
}

func open(redisURL, keysFile, scriptFile, sale string) (*shop, error) {
	options, err := redis.ParseURL(redisURL)
	if err != nil {
		return nil, err
	}
	client := redis.NewClient(options)
	script, err := os.ReadFile(scriptFile)
	if err != nil {
		return nil, err
	}
	sha, err := client.ScriptLoad(context.Background(), string(script)).Result()
	if err != nil {
		return nil, err
	}
	pipelined, err := client.AutoPipeline()
	if err != nil {
		return nil, err
	}
	keys, err := readKeys(keysFile)
	if err != nil {
		return nil, err
	}
	parser := jwt.NewParser(
		jwt.WithValidMethods([]string{"HS256"}), jwt.WithAudience("edge"), jwt.WithIssuer("flashsale"), jwt.WithExpirationRequired(),
	)
	return &shop{redis: pipelined, script: sha, keys: keys, parser: parser, sale: sale}, nil
}

func readKeys(path string) (map[string][]byte, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var ring struct {
		Keys map[string]string `json:"keys"`
	}
	if err := json.Unmarshal(text, &ring); err != nil {
		return nil, err
	}
	keys := make(map[string][]byte, len(ring.Keys))
	for kid, encoded := range ring.Keys {
		if keys[kid], err = base64.RawURLEncoding.DecodeString(encoded); err != nil {
			return nil, fmt.Errorf("%s: %w", kid, err)
		}
	}
	return keys, nil
}

func (s *shop) order(w http.ResponseWriter, r *http.Request) {
	user, err := s.user(r.Header.Get("Authorization"))
	if err != nil {
		refuse(w, http.StatusUnauthorized, "token_invalid")
		return
	}
	key := r.Header.Get("Idempotency-Key")
	if !keyPattern.MatchString(key) {
		refuse(w, http.StatusBadRequest, "idempotency_key_missing")
		return
	}
	if r.PathValue("sale") != s.sale {
		refuse(w, http.StatusNotFound, "sale_not_found")
		return
	}
	wanted, err := parse(w, r)
	if err != nil {
		refuse(w, http.StatusUnprocessableEntity, "validation_failed")
		return
	}
	s.reserve(w, r, user, key, wanted)
}

func (s *shop) user(header string) (string, error) {
	if len(header) < 8 || header[:7] != "Bearer " {
		return "", errors.New("no token")
	}
	var claims struct {
		jwt.RegisteredClaims
		Roles []string `json:"roles"`
	}
	_, err := s.parser.ParseWithClaims(header[7:], &claims, func(token *jwt.Token) (any, error) {
		kid, _ := token.Header["kid"].(string)
		if key, known := s.keys[kid]; known {
			return key, nil
		}
		return nil, errors.New("unknown key")
	})
	return claims.Subject, err
}

func parse(w http.ResponseWriter, r *http.Request) (line, error) {
	decoder := json.NewDecoder(http.MaxBytesReader(w, r.Body, bodyBytesMax))
	decoder.DisallowUnknownFields()
	var body order
	if err := decoder.Decode(&body); err != nil {
		return line{}, err
	}
	// One line: orders of several SKUs are left out (see ../README.md).
	if len(body.Items) != 1 || body.Items[0].Quantity < 1 || body.Items[0].Quantity > quantityMax {
		return line{}, errors.New("not one line of 1 to 100 units")
	}
	if !skuPattern.MatchString(body.Items[0].SKU) {
		return line{}, errors.New("not a SKU")
	}
	return body.Items[0], nil
}

func (s *shop) reserve(w http.ResponseWriter, r *http.Request, user, key string, wanted line) {
	now := time.Now().UTC()
	id, err := uuid.NewV7FromReader(rand.Reader)
	if err != nil {
		refuse(w, http.StatusInternalServerError, "internal_error")
		return
	}
	made := accepted{
		OrderID: id.String(), SaleID: s.sale, UserID: user, Status: "reserved",
		Items:      []pricedLine{{wanted.SKU, wanted.Quantity, priceMinor}},
		TotalMinor: priceMinor * wanted.Quantity, Currency: "EUR",
		ReservedAt: now.Format(timeWithMillis), ExpiresAt: now.Add(holdPerOrder).Format(timeWithMillis),
	}
	entry, err := json.Marshal(made)
	if err != nil {
		refuse(w, http.StatusInternalServerError, "internal_error")
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), callTimeout)
	defer cancel()
	keys := []string{"stock:" + wanted.SKU, "buyer:" + s.sale + ":" + user, "holds:" + s.sale, "orders"}
	ends := strconv.FormatInt(now.Add(holdPerOrder).UnixMilli(), 10)
	outcome, err := s.redis.EvalSha(
		ctx, s.script, keys, key, wanted.Quantity, limitPerBuyer, made.OrderID, ends, entry,
	).StringSlice()
	if err != nil || len(outcome) == 0 {
		refuse(w, http.StatusServiceUnavailable, "dependency_unavailable")
		return
	}
	switch outcome[0] {
	case "accepted", "replayed":
		if outcome[0] == "replayed" {
			w.Header().Set("Idempotency-Replayed", "true")
			made.OrderID = outcome[1]
			if ms, err := strconv.ParseInt(outcome[2], 10, 64); err == nil {
				made.ExpiresAt = time.UnixMilli(ms).UTC().Format(timeWithMillis)
				made.ReservedAt = time.UnixMilli(ms).Add(-holdPerOrder).UTC().Format(timeWithMillis)
			}
		}
		made.UserID = ""
		w.Header().Set("Location", "/v1/orders/"+made.OrderID)
		answer(w, http.StatusAccepted, "application/json", made)
	case "sku_not_found":
		refuse(w, http.StatusNotFound, outcome[0])
	default:
		refuse(w, http.StatusConflict, outcome[0])
	}
}

func refuse(w http.ResponseWriter, status int, code string) {
	answer(w, status, problemJSON, problem{"/problems/" + code, http.StatusText(status), status, code})
}

func answer(w http.ResponseWriter, status int, mediaType string, document any) {
	body, err := json.Marshal(document)
	if err != nil {
		w.WriteHeader(http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", mediaType)
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(status)
	_, _ = w.Write(body) // the client may have left
}
