/* h2_text.c: what gRPC writes into headers: timeouts, encodings, base64, percent-encoding.  Pure functions of bytes. */
#include "h2.h"

/* grpc-timeout: digits (eight by the book, more by some clients) and a unit.  ns; 0: no such thing. */
int64_t
h2_parse_timeout(const uint8_t *s, size_t n)
{
    static const struct {
        char unit;
        int64_t ns;
    } units[] = {{'n', 1}, {'u', 1000}, {'m', 1000000}, {'S', 1000000000}, {'M', 60000000000}, {'H', 3600000000000}};
    if (n < 2 || n > 16)
        return 0;
    int64_t value = 0;
    for (size_t i = 0; i + 1 < n; i++) {
        if (s[i] < '0' || s[i] > '9')
            return 0;
        value = value * 10 + (s[i] - '0');
    }
    for (size_t i = 0; i < sizeof units / sizeof *units; i++)
        if (units[i].unit == s[n - 1])
            return value == 0 ? 1 : value > INT64_MAX / 2 / units[i].ns ? INT64_MAX / 2 : value * units[i].ns;
    return 0;
}

int
h2_encoding_of(const uint8_t *s, size_t n)
{
    if (n == 4 && memcmp(s, "gzip", 4) == 0)
        return ENC_GZIP;
    if (n == 7 && memcmp(s, "deflate", 7) == 0)
        return ENC_DEFLATE;
    if (n == 8 && memcmp(s, "identity", 8) == 0)
        return ENC_IDENTITY;
    return ENC_OTHER;
}

/* Of a list: bits 1 << ENC_... */
uint8_t
h2_encodings_in(const uint8_t *s, size_t n)
{
    uint8_t bits = 0;
    while (n != 0) {
        size_t end = 0;
        while (end < n && s[end] != ',')
            end++;
        size_t a = 0, b = end;
        while (a < b && s[a] == ' ')
            a++;
        while (b > a && s[b - 1] == ' ')
            b--;
        bits |= (uint8_t)(1 << h2_encoding_of(s + a, b - a));
        n -= end;
        s += end;
        if (n != 0) {
            s++;
            n--;
        }
    }
    return bits;
}

static const char base64_digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/* Without padding.  out: four bytes for every three, rounded up. */
size_t
h2_base64_encode(char *out, const uint8_t *in, size_t n)
{
    char *at = out;
    for (size_t i = 0; i < n; i += 3) {
        uint32_t v = (uint32_t)in[i] << 16 | (i + 1 < n ? (uint32_t)in[i + 1] << 8 : 0) | (i + 2 < n ? in[i + 2] : 0);
        *at++ = base64_digits[v >> 18];
        *at++ = base64_digits[v >> 12 & 63];
        if (i + 1 < n)
            *at++ = base64_digits[v >> 6 & 63];
        if (i + 2 < n)
            *at++ = base64_digits[v & 63];
    }
    return (size_t)(at - out);
}

static int
base64_value(uint8_t ch)
{
    if (ch >= 'A' && ch <= 'Z')
        return ch - 'A';
    if (ch >= 'a' && ch <= 'z')
        return ch - 'a' + 26;
    if (ch >= '0' && ch <= '9')
        return ch - '0' + 52;
    return ch == '+' ? 62 : ch == '/' ? 63 : -1;
}

/* With or without padding.  out: n bytes are enough.  The length, or -1. */
ptrdiff_t
h2_base64_decode(char *out, const char *in, size_t n)
{
    while (n > 0 && in[n - 1] == '=')
        n--;
    char *at = out;
    uint32_t v = 0;
    int bits = 0;
    for (size_t i = 0; i < n; i++) {
        int d = base64_value((uint8_t)in[i]);
        if (d < 0)
            return -1;
        v = v << 6 | (uint32_t)d;
        bits += 6;
        if (bits >= 8) {
            bits -= 8;
            *at++ = (char)(v >> bits);
        }
    }
    return at - out;
}

bool
h2_is_base64(const uint8_t *s, size_t n)
{
    while (n != 0 && s[n - 1] == '=')
        n--;
    for (size_t i = 0; i < n; i++)
        if (base64_value(s[i]) < 0)
            return false;
    return true;
}

/* For grpc-message.  out: three times n bytes. */
size_t
h2_percent_encode(char *out, const char *in, size_t n)
{
    static const char hex[] = "0123456789ABCDEF";
    char *at = out;
    for (size_t i = 0; i < n; i++) {
        uint8_t ch = (uint8_t)in[i];
        if (ch >= 0x20 && ch <= 0x7e && ch != '%' && (ch != ' ' || (i != 0 && i != n - 1))) {
            *at++ = (char)ch;
        }
        else {
            *at++ = '%';
            *at++ = hex[ch >> 4];
            *at++ = hex[ch & 15];
        }
    }
    return (size_t)(at - out);
}
