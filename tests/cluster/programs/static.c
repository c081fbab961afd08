/* The only file of a distroless-like image: one static program without a shell, told by its arguments what to do.
 *
 *   /static print TEXT...     a line on stdout              /static complain TEXT...  a line on stderr
 *   /static cat               stdin to stdout               /static exit STATUS       nothing but a status
 *   /static sleep [SECONDS]   forever without a number      /static env               the environment
 *   /static id                uid, gid, pid                 /static raise SIGNAL      dies of a signal
 *
 * Unknown arguments: status 64. It ends with 128+n on a TERM or INT while it sleeps, as PID 1 too. */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

extern char **environ;

/* PID 1 is only ended by signals that it handles. */
static void end(int signal) { _exit(128 + signal); }
static void reap(int signal) { (void)signal; while (waitpid(-1, 0, WNOHANG) > 0) {} }

static int whole(const char *bytes, size_t length) {
    while (length > 0) {
        ssize_t written = write(1, bytes, length);
        if (written < 0 && errno == EINTR) continue;
        if (written < 0) return -1;
        bytes += written;
        length -= (size_t)written;
    }
    return 0;
}

static int cat(void) {
    static char buffer[65536];
    for (;;) {
        ssize_t got = read(0, buffer, sizeof buffer);
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) return 1;
        if (got == 0) return 0;
        if (whole(buffer, (size_t)got) < 0) return 1;
    }
}

static int line(FILE *to, char **words) {
    for (; *words; words++) fprintf(to, words[1] ? "%s " : "%s", *words);
    fputc('\n', to);
    return fflush(to) == 0 ? 0 : 1;
}

static int nap(const char *seconds) {
    signal(SIGTERM, end);
    signal(SIGINT, end);
    signal(SIGCHLD, reap);
    if (!seconds) for (;;) pause();
    unsigned left = (unsigned)atoi(seconds);
    while (left > 0) left = sleep(left);
    return 0;
}

int main(int count, char **words) {
    const char *what = count > 1 ? words[1] : "sleep";
    const char *first = count > 2 ? words[2] : NULL;
    if (!strcmp(what, "print")) return line(stdout, words + 2);
    if (!strcmp(what, "complain")) return line(stderr, words + 2);
    if (!strcmp(what, "cat")) return cat();
    if (!strcmp(what, "exit") && first) return atoi(first);
    if (!strcmp(what, "sleep")) return nap(first);
    if (!strcmp(what, "raise") && first) return raise(atoi(first));
    if (!strcmp(what, "id")) return printf("uid=%d gid=%d pid=%d\n", getuid(), getgid(), getpid()) < 0;
    if (!strcmp(what, "env")) {
        for (char **entry = environ; *entry; entry++) puts(*entry);
        return 0;
    }
    return 64;
}
