/* replay.c: runs inputs that a fuzzer has found, or was begun with, through its entry: replay FILE...  For any compiler. */
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static const char *volatile current = "";

static void
died(int sig)
{
    static const char text[] = "replay: this input ends it: ";
    ssize_t n = write(2, text, sizeof text - 1);
    n = write(2, current, strlen(current));
    n = write(2, "\n", 1);
    (void)n;
    signal(sig, SIG_DFL);
    raise(sig);
}

int
main(int argc, char **argv)
{
    static const int fatal[] = {SIGABRT, SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGALRM};
    static uint8_t data[1 << 20];
    for (size_t i = 0; i < sizeof fatal / sizeof *fatal; i++)
        signal(fatal[i], died);
    for (int i = 1; i < argc; i++) {
        FILE *f = fopen(argv[i], "rb");
        if (f == NULL) {
            perror(argv[i]);
            return 1;
        }
        size_t n = fread(data, 1, sizeof data, f);
        fclose(f);
        uint8_t *exact = malloc(n + 1);
        if (exact == NULL)
            return 1;
        memcpy(exact + 1, data, n); /* to the very end, where a sanitizer looks */
        current = argv[i];
        alarm(30);
        LLVMFuzzerTestOneInput(exact + 1, n);
        free(exact);
    }
    printf("%d inputs replayed\n", argc - 1);
    return argc > 1 ? 0 : 1;
}
