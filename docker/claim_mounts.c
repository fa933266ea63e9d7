// Gives an empty mounted folder that belongs to root to the user whom the container runs as.
//
// `docker run -v "$PWD/outputs":/workspace/outputs` makes a missing folder on the host as root with mode 0755, and the
// container's user, who is not root, could not write one result into it. The usual ways out are worse: an image that
// starts as root and steps down is refused where policy wants a non-root image and gives `docker exec` root's rights.
//
// This program has CAP_CHOWN (see base.Dockerfile) and no other right, and takes no arguments. What it can change is
// one of the folders below, owned by root and *empty*: exactly what Docker makes, and never data that is someone's
// already (think of `-v /:/workspace/outputs`). It opens folders with the user's own rights and follows no link. Under
// --cap-drop=ALL or no-new-privileges it can't do its work; the entrypoint then says what to do on the host.
#include <dirent.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static int is_empty(DIR *folder) {
    struct dirent *entry;
    while ((entry = readdir(folder)))
        if (strcmp(entry->d_name, ".") && strcmp(entry->d_name, "..")) return 0;
    return 1;
}

int main(void) {
    const char *paths[] = {"/workspace", "/workspace/models", "/workspace/outputs"};
    int failed = 0;
    for (unsigned i = 0; i < sizeof paths / sizeof *paths; i++) {
        int fd = open(paths[i], O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
        if (fd < 0) continue;
        struct stat info;
        DIR *folder = fdopendir(fd);
        if (folder && fstat(fd, &info) == 0 && info.st_uid == 0 && is_empty(folder))
            failed |= fchown(fd, getuid(), getgid()) != 0;
        if (folder) closedir(folder);
    }
    return failed;
}
